package cli

import (
	"errors"
	"fmt"
	"path/filepath"

	"filippo.io/age"
	"github.com/spf13/cobra"

	"github.com/usp-project/usp/internal/rundir"
	"github.com/usp-project/usp/snapshot"
)

// identityFlag makes the flag that names the file of secret keys: the file, never a key.
func (a *app) identityFlag(cmd *cobra.Command) {
	a.setting(cmd, false, "identity", "", "snapshot.identity_file", "`file` of age secret keys for encrypted snapshots")
}

// identities reads the secret keys for encrypted snapshots; none if no file is named.
func (a *app) identities() ([]age.Identity, error) {
	if a.cfg.Snapshot.IdentityFile == "" {
		return nil, nil
	}
	return snapshot.ReadIdentities(a.fs, a.cfg.Snapshot.IdentityFile)
}

// keyMissing reports whether an error says that the key of an encrypted snapshot is missing or another.
func keyMissing(err error) bool {
	return errors.Is(err, snapshot.ErrEncrypted) || errors.Is(err, snapshot.ErrWrongIdentity)
}

// needsKey says what to do about an encrypted snapshot that could not be read. Other errors stay as they are.
func (a *app) needsKey(err error) error {
	if !keyMissing(err) {
		return err
	}
	return withCode(exitWrongKey, fmt.Errorf("%w; name the file with its secret key: %s", err, a.keyAdvice()))
}

// keyAdvice says how a key is given, and which file did not have it.
func (a *app) keyAdvice() string {
	advice := "--identity FILE, or identity_file under [snapshot] in usp.toml"
	if file := a.cfg.Snapshot.IdentityFile; file != "" {
		advice += fmt.Sprintf(" (%s has another)", display(file))
	}
	return advice
}

// warnUnencrypted says that a run whose snapshots were encrypted goes on without that.
func (a *app) warnUnencrypted(dir rundir.Dir, name string) {
	if len(a.cfg.Snapshot.Recipients) > 0 {
		return
	}
	_, sections, err := snapshot.Inspect(a.fs, filepath.Join(dir.Snapshots(), name))
	if err == nil && len(sections) > 0 && sections[0].Encrypted {
		fmt.Fprintf(a.err, "usp: warning: %s is encrypted, but new snapshots will not be: snapshot.recipients is empty\n", name)
	}
}
