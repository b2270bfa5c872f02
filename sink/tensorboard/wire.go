package tensorboard

import (
	"encoding/binary"
	"hash/crc32"
	"math"

	"google.golang.org/protobuf/encoding/protowire"
)

// fileVersion is what makes TensorBoard heed SessionLog.START.
const fileVersion = "brain.Event:2"

// The numbers of the fields that are used of TensorFlow's event.proto, summary.proto and tensor.proto.
const (
	eventWallTime    = 1
	eventStep        = 2
	eventFileVersion = 3
	eventSummary     = 5
	eventSessionLog  = 7
	eventSource      = 10

	sourceWriter  = 1
	sessionStatus = 1
	sessionStart  = 1 // SessionLog.START
	sessionMsg    = 3

	summaryValue     = 1
	valueTag         = 1
	valueSimple      = 2
	valueTensor      = 8
	valueMetadata    = 9
	metadataPlugin   = 1
	metadataText     = 3 // summary_description
	pluginName       = 1
	tensorType       = 1
	tensorShape      = 2
	tensorString     = 8
	typeString       = 7 // DT_STRING
	shapeDim         = 2
	dimSize          = 1
	recordHead       = 12 // length u64, its sum u32
	recordTail       = 4  // the sum of the data
	simpleValueBytes = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// masked is the checksum of a TFRecord: CRC32C, rotated and moved, so that it can itself be among summed data.
func masked(b []byte) uint32 {
	c := crc32.Checksum(b, castagnoli)
	return (c>>15 | c<<17) + 0xa282ead8
}

// open leaves room for the head of a record at the end of dst. seal fills it in when the data is there.
func open(dst []byte) []byte { return append(dst, make([]byte, recordHead)...) }

// seal completes the record that begins at dst[at:].
func seal(dst []byte, at int) []byte {
	head, data := dst[at:at+recordHead], dst[at+recordHead:]
	binary.LittleEndian.PutUint64(head, uint64(len(data)))
	binary.LittleEndian.PutUint32(head[8:], masked(head[:8]))
	return binary.LittleEndian.AppendUint32(dst, masked(data))
}

// appendHead begins an event: its time in seconds and its step.
func appendHead(b []byte, ns int64, step uint64) []byte {
	b = protowire.AppendTag(b, eventWallTime, protowire.Fixed64Type)
	b = protowire.AppendFixed64(b, math.Float64bits(seconds(ns)))
	if step == 0 {
		return b
	}
	b = protowire.AppendTag(b, eventStep, protowire.VarintType)
	return protowire.AppendVarint(b, step)
}

// seconds is a time as TensorBoard has it. Whole seconds and the rest apart: a float64 holds no 10^18 ns.
func seconds(ns int64) float64 { return float64(ns/1e9) + float64(ns%1e9)/1e9 }

func appendString(b []byte, field protowire.Number, s string) []byte {
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return protowire.AppendString(b, s)
}

func appendMessage(b []byte, field protowire.Number, message []byte) []byte {
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return protowire.AppendBytes(b, message)
}

func appendVarint(b []byte, field protowire.Number, v uint64) []byte {
	b = protowire.AppendTag(b, field, protowire.VarintType)
	return protowire.AppendVarint(b, v)
}

// appendHeader is what every file begins with: its version, and a START, because one reader of TensorBoard takes the first it sees
// for the beginning of the run and drops nothing.
func appendHeader(dst []byte, ns int64) []byte {
	at := len(dst)
	dst = appendHead(open(dst), ns, 0)
	dst = appendString(dst, eventFileVersion, fileVersion)
	dst = appendMessage(dst, eventSource, appendString(nil, sourceWriter, "usp"))
	return appendStart(seal(dst, at), ns, 0, "usp")
}

// appendStart is a record that makes TensorBoard forget what it has of this step and those behind it.
func appendStart(dst []byte, ns int64, step uint64, msg string) []byte {
	at := len(dst)
	dst = appendHead(open(dst), ns, step)
	log := appendVarint(nil, sessionStatus, sessionStart)
	dst = appendMessage(dst, eventSessionLog, appendString(log, sessionMsg, msg))
	return seal(dst, at)
}

// scalar is a Summary.Value with a number, the last simpleValueBytes of it. A description is Markdown, shown beside the chart.
func scalar(tag, description string, x float32) []byte {
	v := appendString(nil, valueTag, tag)
	if description != "" {
		v = appendMessage(v, valueMetadata, appendString(nil, metadataText, description))
	}
	v = protowire.AppendTag(v, valueSimple, protowire.Fixed32Type)
	return protowire.AppendFixed32(v, math.Float32bits(x))
}

// line is a Summary.Value for TensorBoard's text page.
func line(tag, text string) []byte {
	v := appendString(nil, valueTag, tag)
	v = appendMessage(v, valueMetadata, appendMessage(nil, metadataPlugin, appendString(nil, pluginName, "text")))
	tensor := appendVarint(nil, tensorType, typeString)
	tensor = appendMessage(tensor, tensorShape, appendMessage(nil, shapeDim, appendVarint(nil, dimSize, 1)))
	return appendMessage(v, valueTensor, appendString(tensor, tensorString, text))
}

// appendSummary is a record with values.
func appendSummary(dst []byte, ns int64, step uint64, values ...[]byte) []byte {
	at := len(dst)
	dst = appendHead(open(dst), ns, step)
	var summary []byte
	for _, v := range values {
		summary = appendMessage(summary, summaryValue, v)
	}
	return seal(appendMessage(dst, eventSummary, summary), at)
}
