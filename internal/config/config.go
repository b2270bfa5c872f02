// Package config holds every setting of usp: its default, where it may come
// from and whether it makes sense. A setting is taken from a flag, else from
// the environment variable USP_<SECTION>_<KEY>, else from usp.toml, else from
// the defaults here, and Loaded says which it was.
//
// The file is read strictly: an unknown key, a value of the wrong type and a
// value out of range are errors that name file, line and column, and all of
// them are reported at once. No setting is a secret; those have files of their
// own, of which only the path is a setting.
package config

import (
	"crypto/sha256"
	"runtime"
	"strings"
	"time"

	"github.com/usp-project/usp/predictor"
	"github.com/usp-project/usp/record"
)

// Config is every setting. The tags are its reference: the name in the file,
// the comment that documents it, and the values allowed.
type Config struct {
	Run          Run                    `toml:"run" comment:"usp run: input and output."`
	Predictor    predictor.Config       `toml:"predictor" comment:"The forecast. Two runs can only be compared if these are equal."`
	Orchestrator predictor.Orchestrator `toml:"orchestrator" comment:"What moves the weights of the experts. Part of the forecast: likewise."`
	Ring         Ring                   `toml:"ring" comment:"Shared memory between the step loop and the recorder."`
	Recorder     Recorder               `toml:"recorder" comment:"The process that writes the run directory."`
	Telemetry    Telemetry              `toml:"telemetry" comment:"What usp run records of each step."`
	Digest       Digest                 `toml:"digest" comment:"The tamper-evident log of digests."`
	Anchor       Anchor                 `toml:"anchor" comment:"A second place for the newest signed tree head of each run: what is put back to an older state is found by it."`
	Witness      Witness                `toml:"witness" comment:"Somebody else who cosigns the newest signed tree head of each run (C2SP tlog-witness)."`
	Snapshot     Snapshot               `toml:"snapshot" comment:"Saved states, from which a run resumes."`
	Sinks        Sinks                  `toml:"sinks" comment:"What the destinations below have in common. Each follows the run directory in a process beside the recorder, which never waits for it."`
	Serve        Serve                  `toml:"serve" comment:"The live view, usp serve."`
	Parquet      Parquet                `toml:"parquet" comment:"Telemetry as Parquet files."`
	Prometheus   Prometheus             `toml:"prometheus" comment:"The newest telemetry for Prometheus to ask for."`
	OTLP         OTLP                   `toml:"otlp" comment:"Telemetry as OpenTelemetry metrics (OTLP over HTTP). Headers with secrets are taken from OTEL_EXPORTER_OTLP_HEADERS."`
	TensorBoard  TensorBoard            `toml:"tensorboard" comment:"Telemetry as TensorBoard event files."`
	JetStream    JetStream              `toml:"jetstream" comment:"A mirror of the run in a NATS JetStream stream."`
	Log          Log                    `toml:"log" comment:"What is written to standard error."`
}

// Run is the section [run].
type Run struct {
	Dir           string `toml:"dir" comment:"Directory that holds the run directories. USP_DIR sets it too."`
	TimeColumn    string `toml:"time_column" comment:"Column of the input with the times."`
	ValueColumn   string `toml:"value_column" comment:"Column of the input with the values."`
	ArrivalColumn string `toml:"arrival_column" comment:"Column of the input that says when each row arrived, written as times are; empty: rows arrive at their times."`
	Progress      string `toml:"progress" comment:"Progress on standard error; auto: a line on a terminal, else none." enum:"auto,plain,json,none"`
}

// Ring is the section [ring].
type Ring struct {
	Dir             string `toml:"dir" comment:"Memory-backed directory for rings; empty: /dev/shm/usp-<uid>, else $XDG_RUNTIME_DIR/usp."`
	Slots           int    `toml:"slots" comment:"Records the ring holds before the oldest is overwritten; a power of two." min:"2" max:"16777216"`
	StagingAreas    int    `toml:"staging_areas" comment:"Snapshots that may wait for the recorder; further ones are dropped and counted." min:"1" max:"16"`
	StagingCapacity Size   `toml:"staging_capacity" comment:"Largest state a staging area takes; 0B: what the producer's state needs." min:"0" max:"1099511627776"`
}

// Recorder is the section [recorder].
type Recorder struct {
	CommitInterval Duration `toml:"commit_interval" comment:"Longest time from drained to durable, the disk's own time excluded." min:"1ms" max:"1h"`
	CommitBytes    Size     `toml:"commit_bytes" comment:"Drained bytes that force a commit before the interval is over; at most a quarter of segment_size counts." min:"4096" max:"1073741824"`
	SegmentSize    Size     `toml:"segment_size" comment:"Size at which a telemetry or digest segment is sealed and the next begun." min:"65536" max:"17179869184"`
	HoldBytes      Size     `toml:"hold_bytes" comment:"Bytes held in memory while storage takes none and the ring has to be emptied; what finds no room there is then counted as lost." min:"65536" max:"68719476736"`
	Patience       Duration `toml:"patience" comment:"Time that a run which has ended waits for such storage before it is closed without what is held." min:"1ms" max:"24h"`
	DrainTimeout   Duration `toml:"drain_timeout" comment:"Time the recorder has to store the rest when a run ends." min:"1ms" max:"24h"`
	KeyFile        string   `toml:"key_file" comment:"Ed25519 key that signs tree heads, created on first use with mode 0600; empty: signing.key in the user's configuration directory."`
}

// Telemetry is the section [telemetry].
type Telemetry struct {
	Weights bool `toml:"weights" comment:"Also the weight of each expert, so that usp show can plot them. They tell how the experts' losses differ from step to step; a run keeps what it began with."`
}

// Digest is the section [digest].
type Digest struct {
	Interval     uint64   `toml:"interval" comment:"Log the digests of every n-th step." min:"1"`
	HeadInterval Duration `toml:"head_interval" comment:"Shortest time between two signed tree heads." min:"1ms" max:"24h"`
	Levels       []int    `toml:"levels" comment:"Bits, ascending, at which rounded vectors are digested beside the exact ones, so that compare can say how far two runs agree; none: exact digests only." min:"2" max:"50" step:"4"`
	FloorBits    int      `toml:"floor_bits" comment:"Exponent of 2 below which a number counts as zero in them." min:"-1022" max:"-1"`
	Weights      []string `toml:"weights" comment:"Digest fields whose elements are to be non-negative and to sum to 1; every log entry says whether they do."`
	AuditKeyFile string   `toml:"audit_key_file" comment:"File of at least 16 secret bytes, mode 0600, that the rounded digests are keyed with; empty: not secret. Runs to be compared need the same one."`
	AppendOnly   string   `toml:"append_only" enum:"off,auto" comment:"auto: files of the log get the append-only attribute where rights and file system allow (chattr -a takes it away, and must before they can be removed)."`
}

// Anchor is the section [anchor].
type Anchor struct {
	Dir string `toml:"dir" comment:"Directory that holds a file RUN.checkpoint for each run, best on another disk or machine than the runs; empty: none."`
}

// Witness is the section [witness].
type Witness struct {
	URL      string   `toml:"url" comment:"Address before /add-checkpoint, http or https, without secrets; empty: none."`
	Key      []string `toml:"key" comment:"Verifier keys of the witness (NAME+HASH+KEY, type 4), of which one must have cosigned."`
	Interval Duration `toml:"interval" comment:"Shortest time between two heads that are brought to it; the last one of a run always is." min:"1ms" max:"24h"`
	Timeout  Duration `toml:"timeout" comment:"Longest time that it may take over one head." min:"1ms" max:"1h"`
}

// Snapshot is the section [snapshot].
type Snapshot struct {
	Interval     uint64   `toml:"interval" comment:"Save the state every n steps; 0: only at the end."`
	OnEvents     bool     `toml:"on_events" comment:"Also save it at once when the change detector raises an alarm or degraded mode is entered."`
	EventSpacing uint64   `toml:"event_spacing" comment:"Least steps between two snapshots for alarms, and between two for degraded mode; events in between get none." min:"1"`
	Compression  string   `toml:"compression" enum:"none,zstd" comment:"How a snapshot is stored."`
	Level        int      `toml:"level" comment:"Level of zstd, 1 to 22; 0: 3." min:"0" max:"22"`
	Reuse        int      `toml:"reuse" comment:"Snapshots in a row that may refer to older ones for large sections that did not change; 0: each is whole." min:"0" max:"64"`
	Recipients   []string `toml:"recipients" comment:"Age public keys that snapshots are encrypted to, each of which can read them alone; none: not encrypted."`
	IdentityFile string   `toml:"identity_file" comment:"File of age secret keys, mode 0600, to read encrypted snapshots with; needed by run --resume, verify --deep and the leaderboard of show only."`
	KeepLast     int      `toml:"keep_last" comment:"Newest snapshots that are kept; 0: this rule keeps none. With keep_every and max_age 0 too, all are kept." min:"0" max:"1000000"`
	KeepEvery    uint64   `toml:"keep_every" comment:"Also keep the oldest of every block of n steps; 0: none."`
	MaxAge       Duration `toml:"max_age" comment:"What is older goes, unless keep_last holds it; 0s: no limit." min:"0s"`

	Remote         string `toml:"remote" comment:"Store for a second copy of every snapshot, s3://BUCKET/PREFIX; empty: none. Credentials come from AWS_ACCESS_KEY_ID and what goes with it, from the shared credentials file, or from the machine, and never stand here."`
	RemoteEndpoint string `toml:"remote_endpoint" comment:"Address of the store, such as https://s3.example:9000, without secrets; empty: AWS_ENDPOINT_URL_S3 or AWS_ENDPOINT_URL, else that of Amazon."`
	RemotePart     Size   `toml:"remote_part" comment:"Size from which a snapshot is sent in parts, and of each part, which is held in memory." min:"5242880" max:"5368709120"`
	RemoteLock     string `toml:"remote_lock" enum:"off,governance,compliance" comment:"Object lock that is asked for; the bucket must have been made with it."`
	RemoteLockDays int    `toml:"remote_lock_days" comment:"Days from its upload for which nobody can remove or replace an object, with remote_lock." min:"1" max:"36500"`
}

// Sinks is the section [sinks].
type Sinks struct {
	SyncInterval Duration `toml:"sync_interval" comment:"Longest time until what a destination took is made durable there and the cursor saved." min:"10ms" max:"1h"`
	Timeout      Duration `toml:"timeout" comment:"Longest time that a destination may take over one call." min:"10ms" max:"1h"`
	Patience     Duration `toml:"patience" comment:"Time that a destination of a run which has ended may take nothing, before it is left behind; usp sink RUN brings the rest." min:"1ms" max:"24h"`
}

// Serve is the section [serve].
type Serve struct {
	Aggregates   bool     `toml:"aggregates" comment:"Make the aggregates that long runs are drawn from while they are recorded, in the run directory, beside the recorder, for 2 % more disk. Without them usp serve makes those of the runs that it shows, in its cache."`
	Cache        string   `toml:"cache" comment:"Directory, of mode 0700, where usp serve keeps the aggregates of runs that have none: any range of 10^8 steps is then shown at once; empty: usp/aggregates in the user's cache directory, none: they are not kept."`
	CacheSize    Size     `toml:"cache_size" comment:"Bytes in it; the runs that were not looked at for longest make room for others." min:"1048576" max:"1125899906842624"`
	Fleet        string   `toml:"fleet" comment:"Addresses of NATS servers, nats:// or tls://, with commas, without secrets, whose stream jetstream.stream usp serve shows all runs of; credentials are those of the section jetstream. Empty: none."`
	FleetRecords int      `toml:"fleet_records" comment:"Newest records of a run of the fleet that its page is drawn from." min:"100" max:"1000000"`
	FleetKeys    []string `toml:"fleet_keys" comment:"Verifier keys (NAME+HASH+KEY, \"signer\" in the manifests) of those who sign heads of the fleet; without them nothing in the stream is vouched for."`
}

// Parquet is the section [parquet].
type Parquet struct {
	Dir string `toml:"dir" comment:"Directory that gets run=ID/part-N.parquet for each sealed segment; empty: none."`
}

// Prometheus is the section [prometheus].
type Prometheus struct {
	Listen string `toml:"listen" comment:"Address on loopback, such as 127.0.0.1:9464, that serves /metrics while a run is recorded; empty: none. usp serve has /metrics of all runs."`
}

// OTLP is the section [otlp].
type OTLP struct {
	Endpoint string   `toml:"endpoint" comment:"Address of a collector before /v1/metrics, such as http://127.0.0.1:4318, without secrets; empty: none."`
	Interval Duration `toml:"interval" comment:"Time of the input's clock between two points of a metric: of the records in between the newest is sent." min:"1ms" max:"24h"`
}

// TensorBoard is the section [tensorboard].
type TensorBoard struct {
	Dir   string `toml:"dir" comment:"Log directory that gets a directory for each run; empty: none."`
	Every uint64 `toml:"every" comment:"Write every n-th step." min:"1"`
}

// JetStream is the section [jetstream].
type JetStream struct {
	URL             string `toml:"url" comment:"Addresses of the servers, nats:// or tls://, with commas, without secrets; empty: none."`
	Stream          string `toml:"stream" comment:"Name of the stream, which is made if there is none."`
	Replicas        int    `toml:"replicas" comment:"Servers that are to hold it, where it is made." min:"1" max:"5"`
	CredentialsFile string `toml:"credentials_file" comment:"File of NATS credentials (user JWT and seed); empty: none."`
	CAFile          string `toml:"ca_file" comment:"Certificates that the servers are to be checked with; empty: those of the system."`
}

// Log is the section [log].
type Log struct {
	Level  string `toml:"level" enum:"debug,info,warn,error" comment:"Least severe message written."`
	Format string `toml:"format" enum:"text,json" comment:"Form of a message."`
}

// Default returns the settings used where nothing else is said.
func Default() Config {
	p := predictor.Config{}.WithDefaults()
	o := p.Orchestrator
	p.Orchestrator = predictor.Orchestrator{} // it has a section of its own
	return Config{
		Run:       Run{Dir: "runs", TimeColumn: "time", ValueColumn: "value", Progress: "auto"},
		Predictor: p, Orchestrator: o,
		Ring: Ring{Slots: 1 << 16, StagingAreas: 8},
		Recorder: Recorder{
			CommitInterval: Duration(50 * time.Millisecond),
			CommitBytes:    4 << 20,
			SegmentSize:    16 << 20,
			HoldBytes:      16 << 20,
			Patience:       Duration(time.Minute),
			DrainTimeout:   Duration(10 * time.Second),
		},
		Digest: Digest{
			Interval: 1, HeadInterval: Duration(time.Second),
			Levels: record.DefaultLevels(), FloorBits: record.DefaultFloor, Weights: []string{"rho", "weights"}, AppendOnly: "off",
		},
		Witness:  Witness{Key: []string{}, Interval: Duration(time.Minute), Timeout: Duration(2 * time.Second)},
		Snapshot: Snapshot{Interval: 100, OnEvents: true, EventSpacing: 20, Compression: "none", Recipients: []string{}, KeepLast: 5, RemotePart: 16 << 20, RemoteLock: "off", RemoteLockDays: 30},
		Serve:    Serve{CacheSize: 4 << 30, FleetRecords: 20_000, FleetKeys: []string{}},
		Sinks:    Sinks{SyncInterval: Duration(time.Second), Timeout: Duration(30 * time.Second), Patience: Duration(5 * time.Second)},
		OTLP:     OTLP{Interval: Duration(10 * time.Second)}, TensorBoard: TensorBoard{Every: 1}, JetStream: JetStream{Stream: "usp", Replicas: 1},
		Log: Log{Level: "warn", Format: "text"},
	}
}

// SHA256 returns the digest of the effective settings: of one line
// "section.key = value" for each, in the order of Keys, values as in the file.
// Two processes with the same settings get the same digest, however they came
// by them.
func (c *Config) SHA256() [sha256.Size]byte {
	var b strings.Builder
	for _, f := range fieldsOf(c) {
		b.WriteString(f.name + " = " + f.text() + "\n")
	}
	return sha256.Sum256([]byte(b.String()))
}

// Keys returns the dotted name of every setting, in the order of the file.
func Keys() []string {
	var names []string
	for _, f := range fieldsOf(new(Config)) {
		names = append(names, f.name)
	}
	return names
}

// FileNames returns the files looked for when none is named, the first one
// found being the only one read. userDir is the user's configuration directory
// as from os.UserConfigDir; it may be empty.
func FileNames(userDir string) []string {
	names := []string{"usp.toml"}
	if userDir != "" {
		names = append(names, strings.TrimRight(userDir, "/")+"/usp/config.toml")
	}
	if runtime.GOOS != "windows" {
		names = append(names, "/etc/usp/config.toml")
	}
	return names
}

// PredictorConfig returns the configuration of a predictor, which has two sections in a file.
func (c *Config) PredictorConfig() predictor.Config {
	p := c.Predictor
	p.Orchestrator = c.Orchestrator
	return p
}

// predictorDocs documents the settings of the predictor, which has its own
// types; the comments in its source say more.
func predictorDocs() map[string]string {
	return map[string]string{
		"season":              "Observations in one period; 0: found from what was seen, 1: there is none.",
		"warm_up":             "Scored forecasts before alarms, outliers and measured intervals.",
		"forgetting":          "Forgetting of the autoregressions, per step.",
		"kernel_window":       "Delay vectors of the kernel expert, 16 to 256; 1: no such expert.",
		"step":                "Rule by which the weights move. Only hk and jko transport weight, and have a cost of it.",
		"tau":                 "Time step of jko; the loss counts so much more against the cost of moving.",
		"lambda":              "How much the free energy of jko asks for the weights believed before any evidence.",
		"switch_cost":         "Least cost of moving weight between two experts.",
		"epsilon_base":        "Regularisation of the transport at no volatility.",
		"epsilon_volatility":  "How much relative volatility raises the regularisation.",
		"epsilon_min":         "Least regularisation.",
		"epsilon_max":         "Greatest regularisation.",
		"cusum_slack":         "Slack of the change detector, in standard deviations of the clipped score.",
		"cusum_clip":          "Where scores are clipped, in standard deviations.",
		"target_run_length":   "Steps between two false alarms of the change detector, on average.",
		"variance_run_length": "Steps between two false alarms of the variance chart, on average.",
		"grace":               "Steps after an alarm in which no other is raised.",
		"soft_reset":          "Share of the weights made uniform at an alarm.",
		"outlier_sigma":       "Errors beyond so many scales are held back until they are confirmed.",
		"confirm_steps":       "Observations after which that is decided.",
		"freeze_steps":        "Equal values in a row that raise the frozen flag.",
		"stale_after":         "Sampling periods after which an input counts as stale, and the weights stay.",
		"coverage":            "Share of observations that the forecast interval is to hold.",
		"conformal_rate":      "How fast the interval adapts.",
		"kurtosis_window":     "Window of the kurtosis, in steps.",
		"holder_window":       "Window of the Hölder exponent, in steps.",
		"holder_min":          "Exponent below which there can be an emergency.",
		"holder_hysteresis":   "How far above that it ends.",
	}
}
