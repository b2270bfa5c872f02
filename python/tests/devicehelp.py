"""What the tests of device values share: a schema, special values with their bits, and a plain reader of a ring's file."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

from usp._ring import Ring
from usp._schema import Field, Schema


def make_ring(directory: Path, fields: list[Field], name: str = "run", slots: int = 4096, native: bool | None = None) -> Ring:
    return Ring(directory / f"{name}.ring", name, Schema("test.v1", fields), b"{}", slots=slots, native=native)


def records(ring: Ring) -> list[tuple[int, ...]]:
    """All records of a ring that was not overrun, as rows of words; every slot is checked as doc/format/ring.md says."""
    data = Path(ring.path).read_bytes()
    header_len, slot_size, slots, payload_len = struct.unpack_from("<QQQQ", data, 16)
    (position,) = struct.unpack_from("<Q", data, 1024)
    assert position <= slots
    rows = []
    for n in range(position):
        at = header_len + n * slot_size
        seq, length, crc = struct.unpack_from("<QII", data, at)
        payload = data[at + 16 : at + 16 + payload_len]
        assert (seq, length) == (2 * n + 2, payload_len)
        assert crc == zlib.crc32(payload, zlib.crc32(struct.pack("<QI", seq, length)))
        rows.append(struct.unpack(f"<{payload_len // 8}Q", payload))
    return rows


def widened(bits: int, exponent_bits: int, mantissa_bits: int) -> int:
    """Bits of the float64 equal to a narrow float, by the definition of both, in whole numbers of any size."""
    sign = bits >> (exponent_bits + mantissa_bits)
    exponent = bits >> mantissa_bits & (1 << exponent_bits) - 1
    mantissa = bits & (1 << mantissa_bits) - 1
    bias = (1 << exponent_bits - 1) - 1
    if exponent == (1 << exponent_bits) - 1:
        wide = 2047 << 52 | mantissa << 52 - mantissa_bits
    elif exponent == 0 and mantissa == 0:
        wide = 0
    else:
        power = (exponent or 1) - bias - mantissa_bits
        whole = mantissa | (1 << mantissa_bits if exponent else 0)
        places = whole.bit_length() - 1
        wide = (power + places + 1023) << 52 | (whole - (1 << places)) << 52 - places
    return sign << 63 | wide


# Zeros of both signs, the least and greatest subnormals, the least normals, infinities, NaNs quiet and signalling with payloads.
F64_BITS = [
    0x0, 0x8000000000000000, 0x1, 0x800FFFFFFFFFFFFF, 0x0010000000000000, 0x3FF0000000000001, 0x7FEFFFFFFFFFFFFF,
    0x7FF0000000000000, 0xFFF0000000000000, 0x7FF8000000000000, 0x7FF8DEADBEEF0001, 0xFFF0000000000001, 0x7FF4000000000000,
]  # fmt: skip
F32_BITS = [
    0x0, 0x80000000, 0x1, 0x807FFFFF, 0x00400000, 0x00800000, 0x3F800001, 0x7F7FFFFF,
    0x7F800000, 0xFF800000, 0x7FC00000, 0x7FC0BEEF, 0xFF800001,
]  # fmt: skip
