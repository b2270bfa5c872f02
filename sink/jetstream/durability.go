package jetstream

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// Durability is what a server says of how it keeps what it acknowledges.
type Durability struct {
	Server       string        `json:"server"`
	Version      string        `json:"version"`
	JetStream    bool          `json:"jetstream"`
	SyncAlways   bool          `json:"sync_always"`   // each write is on its disk before it is acknowledged
	SyncInterval time.Duration `json:"sync_interval"` // otherwise, how long one may not be
}

// String says it in a line, with what to do about it.
func (d *Durability) String() string {
	switch {
	case !d.JetStream:
		return fmt.Sprintf("%s (%s) has no JetStream: enable it in its configuration", d.Server, d.Version)
	case d.SyncAlways:
		return fmt.Sprintf("%s (%s) writes to its disk before it acknowledges", d.Server, d.Version)
	}
	return fmt.Sprintf("%s (%s) acknowledges up to %v before it writes to its disk: servers that lose their power together lose that; set sync_interval: always in its jetstream block, or see to it that they do not", d.Server, d.Version, d.SyncInterval)
}

const maxVarz = 4 << 20

// ReadDurability asks the monitoring port of a server, such as http://127.0.0.1:8222, which must have been opened there. A
// client cannot ask for this over its own connection.
func ReadDurability(ctx context.Context, monitoring string) (Durability, error) {
	u, err := url.Parse(monitoring)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return Durability{}, fmt.Errorf("the address of a NATS monitoring port is to be of the form http://HOST:PORT, without secrets")
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, u.JoinPath("varz").String(), nil)
	if err != nil {
		return Durability{}, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return Durability{}, fmt.Errorf("NATS monitoring: %w", err)
	}
	defer response.Body.Close()
	var v struct {
		Name      string `json:"server_name"`
		Version   string `json:"version"`
		JetStream struct {
			Config *struct {
				SyncInterval time.Duration `json:"sync_interval"`
				SyncAlways   bool          `json:"sync_always"`
			} `json:"config"`
		} `json:"jetstream"`
	}
	err = json.NewDecoder(io.LimitReader(response.Body, maxVarz)).Decode(&v)
	if err != nil || response.StatusCode != http.StatusOK || v.Version == "" {
		return Durability{}, fmt.Errorf("NATS monitoring: %s does not answer as a NATS server does (%s)", u.Host, response.Status)
	}
	d := Durability{Server: v.Name, Version: v.Version}
	if c := v.JetStream.Config; c != nil {
		d.JetStream, d.SyncAlways, d.SyncInterval = true, c.SyncAlways, c.SyncInterval
	}
	return d, nil
}
