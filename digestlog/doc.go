// Package digestlog keeps the append-only, tamper-evident log of a run: which digests were computed at which step, what was lost,
// which snapshots and sealed files exist, and how the run ended.
//
// # Model
//
// A log is a directory of numbered segment files (kind [segment.KindDigests]). Every frame is one [Entry], every entry is one leaf of an
// RFC 6962 Merkle tree (SHA-256, 0x00 before a leaf, 0x01 before a node). The [Log] keeps only the right edge of the tree in memory, so
// its size does not grow with the log, and each segment's header carries that edge as it was at the segment's first entry, so opening
// a log replays the last segment and no other. A signed tree head (a C2SP tlog-checkpoint, Ed25519) lies beside the directory.
//
// # Promises
//
//   - Nothing is counted before it is durable. [Log.Append] works in memory; [Log.Sync] returns nil only when every entry appended before
//     it is on stable storage; only then does the tree grow, and only what the tree holds is ever signed.
//   - A log never goes backwards. [Open] refuses, without touching a file, a log that is shorter than its signed head ([ErrRollback]),
//     that has another root at the signed size ([ErrHeadMismatch]), or that has damage in the part it replays.
//   - The first write or fsync error ends the use of a file. Entries that were not known durable go again into a new file, whose header
//     says so; the failed file keeps what it had promised and is neither appended to nor rewritten.
//   - [Verify] shares the encoding and the leaf hash with the writer and nothing else: its tree is another library's
//     (github.com/transparency-dev/merkle), and it tells damaged bytes, missing entries, a wrong root and an unacknowledged tail apart.
//
// What a head covers can be handed on without the run: [ExportTiles] writes it as C2SP tlog-tiles, [Prove] shows one entry and [ProveGrowth] that a log
// only grew, in forms that other people's tools read; [VerifyTiles], [Proof.Verify] and [GrowthProof.Verify] check them.
//
// Any prefix of a log is itself a valid log. That nothing was cut off the end is known only from the signed head, and that the head was not
// exchanged for an older one only from a copy of it kept elsewhere.
//
// The byte layout is specified in doc/format/digestlog.md, with vectors in testdata/vectors/digestlog.
package digestlog
