package bench

import (
	"context"
	"slices"
	"time"

	"github.com/usp-project/usp/predictor"
	"github.com/usp-project/usp/record"
)

// RecorderFigures says what recording costs beside what it cannot do without. The rates are of medians over rounds.
type RecorderFigures struct {
	DigestInterval uint64  `json:"digest_interval"`
	Records        uint64  `json:"records"` // in each round
	Rounds         int     `json:"rounds"`
	Bytes          float64 `json:"bytes_per_record"` // in the files of telemetry and digests
	Lost           uint64  `json:"lost"`             // in all rounds

	Rate      float64 `json:"records_per_s"`            // stored and synced, the recorder's process on one core
	PlainRate float64 `json:"plain_records_per_s"`      // the same bytes written to one file, one sync at the end
	GroupRate float64 `json:"plain_sync_records_per_s"` // the same bytes, a sync for each 1 MiB
	ToPlain   float64 `json:"to_plain"`                 // Rate / PlainRate
	ToGroup   float64 `json:"to_plain_sync"`            // Rate / GroupRate

	// CPU time, which other programs on the machine take nothing of.
	CPU     float64 `json:"cpu_ns_per_record"`      // of the recorder's process
	CPURate float64 `json:"records_per_cpu_s"`      // of the recorder's process
	HashCPU float64 `json:"hash_cpu_ns_per_record"` // only the SHA-256 sums that the formats ask for
	ToHash  float64 `json:"cpu_to_hash"`            // CPU / HashCPU

	MaxRSS int64 `json:"max_rss_bytes"` // of the recorder's process
}

// CompareRecorder measures rounds of each, in turn. What it writes lies in c.Dir until the next round.
func CompareRecorder(ctx context.Context, c RecorderConfig, rounds int) (f RecorderFigures, err error) {
	f = RecorderFigures{DigestInterval: max(c.Options.DigestInterval, 1), Records: c.Records, Rounds: rounds}
	var recorded, alone, group, hashed, cpu []time.Duration
	for range rounds {
		round, err := Record(ctx, c)
		if err != nil {
			return f, err
		}
		recorded, cpu = append(recorded, round.Elapsed), append(cpu, round.CPU)
		f.Bytes = float64(round.Bytes) / float64(c.Records)
		f.Lost += round.Lost
		f.MaxRSS = max(f.MaxRSS, round.MaxRSS)
		for every, list := range map[int64]*[]time.Duration{0: &alone, 1 << 20: &group} {
			took, err := plain(c.Dir, round.Sample, round.Bytes, every)
			if err != nil {
				return f, err
			}
			*list = append(*list, took)
		}
		lengths := schemaHashes()
		entry := int64(lengths[len(lengths)-2]) + 3 // in a file: without the leaf's prefix, with a length
		took, err := hashing(lengths, c.Records, f.DigestInterval, round.Bytes-entry*int64(c.Records/f.DigestInterval))
		if err != nil {
			return f, err
		}
		hashed = append(hashed, took)
	}
	f.Rate, f.PlainRate = rate(c.Records, Median(recorded)), rate(c.Records, Median(alone))
	f.GroupRate, f.CPURate = rate(c.Records, Median(group)), rate(c.Records, Median(cpu))
	f.ToPlain, f.ToGroup = f.Rate/f.PlainRate, f.Rate/f.GroupRate
	f.CPU, f.HashCPU = 1e9/f.CPURate, 1e9/rate(c.Records, Median(hashed))
	f.ToHash = f.CPU / f.HashCPU
	return f, nil
}

// schemaHashes returns the lengths in bytes of what is hashed for the digests of one record: its digest fields, its
// entry as a leaf of the tree, and, as often as there are leaves, a node.
func schemaHashes() []int {
	const leaf, node, entry, sum = 1, 1 + 2*32, 24 + 4 + 4 + 2, 32
	var lengths []int
	for _, f := range predictor.Schema(experts).Fields() {
		if f.Class == record.Digest {
			lengths = append(lengths, 8*f.Len)
		}
	}
	return slices.Concat(lengths, []int{leaf + entry + sum*len(lengths), node})
}
