"""A reader of rings for the tests, written from doc/format/ring.md. It reads what a producer that is gone has left."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path


class Refused(Exception):
    """The class of error, as in the table of the format page."""


@dataclass
class Read:
    """What a ring says."""

    cls: str = "ok"
    run_id: str = ""
    generation: int = 0
    schema: bytes = b""
    meta: bytes = b""
    payload_len: int = 0
    slots: int = 0
    pid: int = 0
    state: str = ""
    position: int = 0
    drops: int = 0
    produced: int = 0
    records: list[tuple[int, bytes]] = field(default_factory=list)
    lost: list[tuple[int, int, str]] = field(default_factory=list)
    staged: list[dict[str, object]] = field(default_factory=list)
    discarded: int = 0


def u64(b: bytes, at: int) -> int:
    return int.from_bytes(b[at : at + 8], "little")


def u32(b: bytes, at: int) -> int:
    return int.from_bytes(b[at : at + 4], "little")


def text(b: bytes) -> str:
    return b.rstrip(b"\0").decode()


def read(path: str | os.PathLike[str]) -> Read:
    """Reads a ring and its staging areas. Raises Refused."""
    b = Path(path).read_bytes()
    if b[:8] != b"USPRING1":
        raise Refused("not-ours")
    if len(b) < 256 or u32(b, 12) != 0x01020304:
        raise Refused("corrupt")
    if u32(b, 8) != 1:
        raise Refused("too-new")
    header_len, slot_size, slots, payload_len = (u64(b, at) for at in (16, 24, 32, 40))
    schema_off, schema_len, meta_off, meta_len = struct.unpack_from("<4I", b, 48)
    if header_len % 4096 or not 0 < header_len <= min(143360, len(b)):
        raise Refused("corrupt")
    for off, length in ((schema_off, schema_len), (meta_off, meta_len)):
        if off < 2048 or length > 65536 or off + length > header_len:
            raise Refused("corrupt")
    r = Read()
    r.schema, r.meta = b[schema_off : schema_off + schema_len], b[meta_off : meta_off + meta_len]
    if u32(b, 252) != zlib.crc32(b[:252] + r.schema + r.meta):
        raise Refused("corrupt")
    areas, capacity = u32(b, 132), u64(b, 136)
    if (
        payload_len % 8 or not 8 <= payload_len <= 1044480 or slots & (slots - 1) or not 2 <= slots <= 1 << 24
        or slot_size % 64 or not 16 + payload_len <= slot_size <= 1052672
        or areas > 16 or (areas == 0) != (capacity == 0)
        or any(b[164:168]) or any(b[176:252])
    ):  # fmt: skip
        raise Refused("corrupt")
    if len(b) != header_len + slots * slot_size:
        raise Refused("corrupt")
    if b[64:96] != hashlib.sha256(r.schema).digest():
        raise Refused("digest-mismatch")
    r.run_id, r.generation, r.payload_len, r.slots, r.pid = (
        text(b[96:128]),
        u32(b, 128),
        payload_len,
        slots,
        u32(b, 160),
    )
    r.state = {1: "open", 2: "closed", 3: "failed"}[u64(b, 1280)]
    r.position, r.drops = u64(b, 1024), u64(b, 1408)
    _records(r, b, header_len, slot_size)
    _staged(r, path, areas, capacity)
    return r


def _lose(r: Read, first: int, end: int, why: str) -> None:
    if r.lost and r.lost[-1][1] == first and r.lost[-1][2] == why == "overrun":
        first = r.lost.pop()[0]
    r.lost.append((first, end, why))


def _records(r: Read, b: bytes, header_len: int, slot_size: int) -> None:
    n = 0
    while True:
        at = header_len + n % r.slots * slot_size
        seq = u64(b, at)
        whole = b[at + 8 : at + 16 + r.payload_len]
        length, crc, payload = u32(whole, 0), u32(whole, 4), whole[8:]
        if (
            seq == 2 * n + 2
            and length == r.payload_len
            and crc == zlib.crc32(struct.pack("<QI", seq, length) + payload)
        ):
            r.records.append((n, payload))
        elif r.position <= n and seq != 2 * n + 2:
            if seq != 2 * n + 1:
                break
            _lose(r, n, n + 1, "torn")
            r.cls = "torn-tail"
        elif r.position - n > r.slots or (
            seq > 2 * n + 2 and ((seq - 1) // 2 - n) % r.slots == 0 and (seq - 1) // 2 <= r.position
        ):
            to = max(n + 1, r.position - r.slots)
            _lose(r, n, to, "overrun")
            n = to
            continue
        else:
            _lose(r, n, n + 1, "torn")
        n += 1
    r.produced = n


def _staged(r: Read, path: str | os.PathLike[str], areas: int, capacity: int) -> None:
    found = []
    for i in range(areas):
        b = Path(f"{os.fspath(path)}.stage{i}").read_bytes()
        head = struct.pack("<8sIIQ32sI", b"USPSTAG1", 1, i, capacity, r.run_id.encode(), r.generation)
        assert b[:60] == head and u32(b, 60) == zlib.crc32(head), f"header of area {i}"
        assert len(b) == 4096 + (capacity + 4095) // 4096 * 4096
        state, step, seq, ticket, length = u64(b, 128), *(u64(b, at) for at in (256, 264, 272, 280))
        content = b[4096 : 4096 + length]
        if state == 2:
            if u32(b, 296) & 1:
                assert u32(b, 300) == zlib.crc32(content), f"content of area {i}"
            whole = {
                "step": step,
                "seq": seq,
                "generation": u32(b, 288),
                "reason": u32(b, 292),
                "content": content.hex(),
            }
            found.append((ticket, whole))
        elif state == 1:
            r.discarded += 1
    r.staged = [s for _, s in sorted(found, key=lambda pair: pair[0])]
