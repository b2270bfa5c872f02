package columnar

import (
	"math"
	"slices"

	"github.com/parquet-go/parquet-go"
)

// floats is the type of a column of floats, whose bounds, of each page and of each row group, are infinite where there is a
// NaN. The library leaves NaN out of bounds, as the format says. But to who sorts NaN above all numbers, as SQL does, a row group
// that ends at 999 has none: DuckDB finds no row of it with isnan(x), nor with x > 1000.
type floats struct{ parquet.Type }

func (t floats) NewColumnBuffer(columnIndex, numValues int) parquet.ColumnBuffer {
	return floatBuffer{t.Type.NewColumnBuffer(columnIndex, numValues)}
}

type floatBuffer struct{ parquet.ColumnBuffer }

func (b floatBuffer) Page() parquet.Page { return floatPage{b.ColumnBuffer.Page()} }

type floatPage struct{ parquet.Page }

func (p floatPage) Bounds() (least, most parquet.Value, ok bool) {
	data := p.Data()
	switch p.Type().Kind() {
	case parquet.Double:
		if slices.ContainsFunc(data.Double(), math.IsNaN) {
			return parquet.DoubleValue(math.Inf(-1)), parquet.DoubleValue(math.Inf(1)), true
		}
	case parquet.Float:
		if slices.ContainsFunc(data.Float(), func(x float32) bool { return x != x }) {
			return parquet.FloatValue(float32(math.Inf(-1))), parquet.FloatValue(float32(math.Inf(1))), true
		}
	}
	return p.Page.Bounds()
}
