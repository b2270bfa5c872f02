package columnar

import (
	"github.com/parquet-go/parquet-go"
)

// group is a parquet.Group whose fields keep the order in which they were added; the library sorts them by name.
type group struct {
	parquet.Group
	names []string
}

func (g *group) add(name string, n parquet.Node) {
	if g.Group == nil {
		g.Group = parquet.Group{}
	}
	g.Group[name] = n
	g.names = append(g.names, name)
}

// Fields returns them in order.
func (g *group) Fields() []parquet.Field {
	byName := map[string]parquet.Field{}
	for _, f := range g.Group.Fields() {
		byName[f.Name()] = f
	}
	fields := make([]parquet.Field, len(g.names))
	for i, name := range g.names {
		fields[i] = byName[name]
	}
	return fields
}
