package cli

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/usp-project/usp/internal/config"
)

func (a *app) configCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Check and show the settings", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	var origin bool
	show := &cobra.Command{
		Use: "show", Short: "Print the settings in force, as a usp.toml", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := a.loadConfig(); err != nil {
				return err
			}
			switch {
			case a.json:
				return a.printJSON(a.cfg.Values(), true)
			case origin:
				fmt.Fprint(a.out, a.cfg.Show())
			default:
				fmt.Fprint(a.out, a.cfg.TOML())
			}
			return nil
		},
	}
	show.Flags().BoolVar(&origin, "origin", false, "say where each value comes from")
	cmd.AddCommand(show,
		&cobra.Command{
			Use: "check [FILE]", Short: "Check a settings file (default: the one that would be read)", Args: cobra.MaximumNArgs(1),
			RunE: func(_ *cobra.Command, args []string) error { return a.configCheck(args) },
		},
		&cobra.Command{
			Use: "schema", Short: "Print the JSON Schema of usp.toml", Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error {
				_, err := a.out.Write(config.Schema())
				return err
			},
		})
	return cmd
}

func (a *app) configCheck(args []string) error {
	var loaded *config.Loaded
	if len(args) == 0 {
		if err := a.loadConfig(); err != nil {
			return err
		}
		loaded = a.cfg
	} else {
		text, err := os.ReadFile(args[0])
		if err != nil {
			return err
		}
		if loaded, err = config.Check(args[0], text); err != nil {
			return err
		}
		loaded.File = args[0]
	}
	if a.json {
		return a.printJSON(map[string]any{"ok": true, "file": loaded.File, "warnings": loaded.Warnings}, true)
	}
	if loaded.File == "" {
		fmt.Fprintln(a.out, "no settings file; the defaults are in force")
		return nil
	}
	fmt.Fprintf(a.out, "%s: ok\n", loaded.File)
	return nil
}
