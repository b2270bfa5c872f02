// Package examples holds the five real series that usp ships, so that a first
// run needs no download: yearly sunspot numbers, the flow of the Nile, weekly
// CO₂ at Mauna Loa, and quarterly unemployment and gross domestic product of
// the United States. All are in the public domain; SOURCES.md names where
// each comes from and what was changed. The bytes never change between builds
// of one version, so a run on an example is reproducible to the digest.
package examples

import (
	"embed"
	"slices"
)

// Prefix stands before an example's name where a file name could stand, as in
// "example:sunspots".
const Prefix = "example:"

// Default is the name of the series used when none is given.
const Default = "sunspots"

// Series is one shipped series.
type Series struct {
	Name   string // what follows Prefix
	Title  string // one line for people
	CSV    []byte // header "time,value", then one row per observation
	Season int    // observations in one period; 0 when there is none
	Unit   string // of the value column
	Source string // who measured or published it, and its licence
}

//go:embed sunspots.csv nile.csv co2.csv unemployment.csv gdp.csv
var files embed.FS

// All returns the shipped series in the order in which they are shown.
// The caller owns the bytes.
func All() []Series {
	list := []Series{
		{
			Name: "sunspots", Title: "Yearly sunspot number, 1700–2008", Season: 11, Unit: "sunspots",
			Source: "NOAA National Geophysical Data Center, via statsmodels 0.13.5; public domain",
		},
		{
			Name: "nile", Title: "Yearly flow of the Nile at Aswan, 1871–1970", Unit: "10^8 m^3",
			Source: "Cobb (1978), Biometrika 65(2), via statsmodels 0.13.5; public domain",
		},
		{
			Name: "co2", Title: "Weekly atmospheric CO₂ at Mauna Loa, 1958–2001", Season: 52, Unit: "ppm",
			Source: "Keeling and Whorf (2004), CDIAC, via statsmodels 0.13.5; public domain; 59 missing weeks interpolated",
		},
		{
			Name: "unemployment", Title: "Quarterly unemployment rate of the United States, 1959–2009", Season: 4, Unit: "%",
			Source: "Bureau of Labor Statistics, via statsmodels; public domain",
		},
		{
			Name: "gdp", Title: "Quarterly real gross domestic product of the United States, 1959–2009", Unit: "100 ln(10^9 $ of 2005)",
			Source: "Bureau of Economic Analysis via FRED and statsmodels; public domain; 100 times the natural logarithm",
		},
	}
	for i := range list {
		data, err := files.ReadFile(list[i].Name + ".csv")
		if err != nil {
			panic("examples: the build lacks " + list[i].Name + ".csv") // go:embed lists it, so it cannot be missing
		}
		list[i].CSV = data // a copy
	}
	return list
}

// Names returns the names that Lookup knows, in the order of All.
func Names() []string {
	var names []string
	for _, s := range All() {
		names = append(names, s.Name)
	}
	return names
}

// Lookup returns the series of that name, without Prefix.
func Lookup(name string) (Series, bool) {
	all := All()
	i := slices.IndexFunc(all, func(s Series) bool { return s.Name == name })
	if i < 0 {
		return Series{}, false
	}
	return all[i], true
}
