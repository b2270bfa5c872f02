// Package tui shows the runs of a directory in a terminal: a table of all, one run with its newest values, keys to go
// between them.
//
// It knows how to show a View and nothing of where it comes from: the caller gives a function that looks. What is shown is
// a pure function of the views and keys so far, so all of it but Show can be tested without a terminal. Colour carries
// nothing that text does not.
package tui

import (
	"context"
	"errors"
	"io"
	"time"

	tea "charm.land/bubbletea/v2"
)

// Options are what Show needs. Look is needed.
type Options struct {
	Look     func() (View, error) // called by one goroutine at a time
	Interval time.Duration        // between looks; 0: a second
	In       io.Reader
	Out      io.Writer
	Env      []string // NO_COLOR, TERM and so on
}

// Show shows what Look finds until q is pressed or ctx ends. The error is that of ctx, of the terminal, or of the first look.
func Show(ctx context.Context, o Options) error {
	if o.Interval <= 0 {
		o.Interval = time.Second
	}
	p := tea.NewProgram(&program{options: o}, tea.WithContext(ctx), tea.WithInput(o.In), tea.WithOutput(o.Out), tea.WithEnvironment(o.Env), tea.WithoutSignalHandler())
	last, err := p.Run()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if last, ok := last.(*program); ok && last.err != nil {
		err = errors.Join(err, last.err)
	}
	return err
}

// program fits a model to bubbletea.
type program struct {
	options Options
	model   model
	seen    bool
	err     error // of the first look
}

// looked is what a look has found.
type looked struct {
	view View
	err  error
}

// tick asks for the next look.
type tick struct{}

// Init begins with a look.
func (p *program) Init() tea.Cmd { return p.look }

func (p *program) look() tea.Msg {
	v, err := p.options.Look()
	return looked{v, err}
}

// Update takes in a key, a size or a look.
func (p *program) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		p.model.width, p.model.height = msg.Width, msg.Height
	case tea.KeyPressMsg:
		if p.model.press(msg.String()) {
			return p, tea.Quit
		}
	case looked:
		if msg.err != nil && !p.seen {
			p.err = msg.err
			return p, tea.Quit
		}
		p.seen = true
		p.model.take(msg.view, msg.err)
		return p, tea.Tick(p.options.Interval, func(time.Time) tea.Msg { return tick{} })
	case tick:
		return p, p.look
	}
	return p, nil
}

// View draws the model.
func (p *program) View() tea.View {
	v := tea.NewView(p.model.draw())
	v.AltScreen = true
	v.WindowTitle = "usp top"
	return v
}
