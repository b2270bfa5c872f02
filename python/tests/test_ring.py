"""Rings made here are those of the format page, to the byte, whoever writes the slots."""

from __future__ import annotations

import gc
import hashlib
import json
import mmap
import struct
import sys
import threading
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ringreader
from conftest import VECTORS
from rings import RUN, SCHEMA, child, locked, make, native, payload, whole  # noqa: F401

from usp import _ring, _ringfile
from usp._errors import ClosedError, FieldError, StepError
from usp._schema import Schema, fields

INDEX = json.loads((VECTORS / "ring" / "index.json").read_text())["files"]
BY_NAME = {v["name"]: v for v in INDEX}

# The format


@pytest.mark.parametrize("vector", INDEX, ids=lambda v: v["name"])
def test_vectors_are_read(vector: dict[str, Any]) -> None:
    """The reader of these tests finds what the Go reader finds."""
    path = VECTORS / "ring" / vector["name"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == vector["sha256"]
    try:
        r = ringreader.read(path)
    except ringreader.Refused as e:
        assert str(e) == vector["class"]
        return
    assert r.cls == vector["class"]
    assert (r.run_id, r.generation, r.payload_len, r.slots) == (
        RUN,
        vector.get("generation", 0),
        vector["payload_len"],
        vector["slots"],
    )
    assert (r.schema.decode(), r.meta.decode(), r.state) == (
        vector.get("schema", ""),
        vector.get("meta", ""),
        vector["state"],
    )
    assert [{"seq": n, "payload": b.hex()} for n, b in r.records] == vector.get("records", [])
    assert [{"from": a, "to": b, "reason": why} for a, b, why in r.lost] == vector.get("lost", [])
    assert r.produced == vector.get("produced", 0)
    assert r.staged == vector.get("staged", []) and r.discarded == vector.get("discarded", 0)


@pytest.fixture
def of_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Process, clock and boot of the vectors."""
    start = 1795378713_123456789
    monkeypatch.setattr(_ringfile, "identity", lambda: (4242, start, bytes(range(16))))


@pytest.mark.usefixtures("of_vectors")
@pytest.mark.parametrize("name", ["plain.ring", "wide.ring", "empty.ring", "lapped.ring", "staged.ring"])
def test_same_bytes_as_go(ring_dir: Path, native: bool, name: str) -> None:
    vector = BY_NAME[name]
    words = vector["payload_len"] // 8
    schema = SimpleNamespace(text=vector.get("schema", "").encode(), payload_len=8 * words, fields=())
    staging = {"staging_areas": 2, "staging_capacity": 64} if name == "staged.ring" else {}
    ring = make(
        ring_dir, native, schema=schema, meta=vector.get("meta", "").encode(), slots=vector["slots"],
        generation=vector.get("generation", 0), **staging,
    )  # fmt: skip
    produced = vector.get("produced", 0)
    if produced > 2:
        ring.emit_block(b"".join(payload(n, words) for n in range(2)))
    for n in range(ring.position, produced):
        assert ring.emit(payload(n, words)) == n
    if staging:
        ring._staging_crc = True

        def half(view: memoryview) -> None:
            view[:9] = b"half a st"
            compare()

        assert ring.stage(41, 9, 11, lambda view: view.__setitem__(slice(None), b"whole state"))

    def compare() -> None:
        for suffix in ("", ".stage0", ".stage1") if staging else ("",):
            assert Path(ring.path + suffix).read_bytes() == (VECTORS / "ring" / (name + suffix)).read_bytes(), suffix

    if staging:
        assert ring.stage(42, 0, 9, half)
    if vector["state"] != "open":
        ring.finish(vector["state"] == "closed")
    if not staging:
        compare()
    ring.close()


# Records


def test_emit_and_overrun(ring_dir: Path, native: bool) -> None:
    ring = make(ring_dir, native)
    assert ring.native == native and ring.position == 0
    for n in range(5):
        assert ring.emit(payload(n)) == n
    assert ring.emit(bytearray(payload(5))) == 5 and ring.emit(memoryview(payload(6))) == 6
    assert ring.emit_block(b"".join(payload(n) for n in range(7, 29))) == 7
    assert ring.position == 29
    for bad in (b"", payload(0)[:-1], payload(0)[:-8], payload(0) * 2):
        with pytest.raises(FieldError):
            ring.emit(bad)
    for bad in (b"", payload(0)[:-8], payload(0) * 2 + b"12345678"):
        with pytest.raises(FieldError):
            ring.emit_block(bad)
    ring.finish(True)
    r = ringreader.read(ring.path)
    whole(r)
    assert (r.state, r.position, r.produced, r.lost, len(r.records)) == ("closed", 29, 29, [(0, 21, "overrun")], 8)
    for call in (lambda: ring.emit(payload(0)), lambda: ring.emit_block(payload(0)), lambda: ring.advance(1)):
        with pytest.raises(ClosedError):
            call()
    assert ring.position == 29
    ring.close()
    ring.close()
    ring.finish(False)
    assert ringreader.read(ring.path).state == "closed"


@pytest.mark.parametrize("words", [3, 4, 13, 14, 200, 4097])
def test_every_length(ring_dir: Path, native: bool, words: int) -> None:
    schema = Schema("t", fields(a=("metric", words - 2)))
    ring = make(ring_dir, native, schema=schema, slots=4)
    ring.emit_block(b"".join(payload(n, words) for n in range(3)))
    ring.emit(payload(3, words))
    ring.close()
    r = ringreader.read(ring.path)
    whole(r, words)
    assert len(r.records) == 4 and r.state == "failed"


def test_threads(ring_dir: Path, native: bool) -> None:
    ring = make(ring_dir, native, slots=1 << 14)
    numbers: list[list[int]] = [[] for _ in range(4)]

    def work(k: int) -> None:
        for i in range(1000):
            numbers[k].append(ring.emit(struct.pack("<3Q", k, i, k ^ i)))
            if i % 100 == 0:
                ring.emit_block(struct.pack("<3Q", k, i, 99) * 3)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    finally:
        sys.setswitchinterval(interval)
    ring.finish(True)
    r = ringreader.read(ring.path)
    assert not r.lost and len(r.records) == r.produced == ring.position == 4 * (1000 + 30)
    at = {seq: struct.unpack("<3Q", b) for seq, b in r.records}
    for k in range(4):
        assert [at[n] for n in numbers[k]] == [(k, i, k ^ i) for i in range(1000)]
    ring.close()


def test_steps(ring_dir: Path, native: bool) -> None:
    ring = make(ring_dir, native)
    assert ring.last_step == -1
    ring.advance(0)
    ring.advance(5, 9)
    for bad in ((9,), (3,), (9, 20), (20, 19), (-1,), (1 << 64,)):
        with pytest.raises(StepError):
            ring.advance(*bad)
    assert ring.last_step == 9
    ring.advance((1 << 64) - 1)
    ring.finish(True)
    assert ring.last_step == (1 << 64) - 1
    ring.close()


def test_interrupted_emit_is_a_lost_record(ring_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Control-C in the middle of a pure-Python slot costs that record and no other."""
    ring = make(ring_dir, False)
    ring.emit(payload(0))

    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(_ring, "zlib", SimpleNamespace(crc32=interrupt))
        ring.emit(payload(1))
    assert ring.emit(payload(2)) == 2
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(_ring, "zlib", SimpleNamespace(crc32=interrupt))
        ring.emit(payload(3))
    ring.finish(True)
    r = ringreader.read(ring.path)
    whole(r)
    assert [n for n, _ in r.records] == [0, 2] and r.lost == [(1, 2, "torn"), (3, 4, "torn")] and r.produced == 4
    ring.close()


def test_emit_in_the_middle_of_an_emit(ring_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler of a signal that emits while pure Python writes a record: both are there."""
    ring = make(ring_dir, False)
    depth: list[int] = []

    def handler(*a: object) -> int:
        if len(depth) < 2:
            depth.append(1)
            k = len(depth)
            assert ring.emit(payload(k)) == k
        return zlib.crc32(*a)  # type: ignore[arg-type]

    with monkeypatch.context() as m:
        m.setattr(_ring, "zlib", SimpleNamespace(crc32=handler))
        assert ring.emit(payload(0)) == 0
    assert ringreader.read(ring.path).position == 3
    assert ring.emit(payload(3)) == 3
    ring.finish(True)
    r = ringreader.read(ring.path)
    whole(r)
    assert len(r.records) == r.position == 4 and r.lost == []
    ring.close()


@pytest.mark.parametrize("end", ["finish", "close"])
def test_ended_in_the_middle_of_an_emit(ring_dir: Path, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """A handler of a signal that ends the ring does not wait for the record that it interrupts: that one is lost."""
    ring = make(ring_dir, False)
    ring.emit(payload(0))

    def handler(*a: object) -> int:
        ring.finish(True) if end == "finish" else ring.close()
        return zlib.crc32(*a)  # type: ignore[arg-type]

    with monkeypatch.context() as m, pytest.raises(ClosedError):
        m.setattr(_ring, "zlib", SimpleNamespace(crc32=handler))
        ring.emit(payload(1))
    r = ringreader.read(ring.path)
    whole(r)
    assert (r.produced, r.lost, r.state) == (2, [(1, 2, "torn")], "closed" if end == "finish" else "failed")
    ring.close()


def test_memory_stays(ring_dir: Path, native: bool) -> None:
    """A million records, some of them refused, take no memory that is not given back."""
    ring = make(ring_dir, native, schema=Schema("t", fields(a=("metric", 1), v=("digest", 4))))
    emit = ring.emitter(lambda *_: None)
    step = iter(range(1 << 62))

    def some(n: int) -> None:
        for _ in range(n):
            emit(next(step), {"a": 1.5, "v": [1.0, 2.0, 3.0, 4.0]})
        for bad in ({"a": "x", "v": [1.0] * 4}, {"a": 1.0, "v": [1.0] * 3}, {"a": 1.0}, {"a": 1.0, "v": "abcd"}):
            with pytest.raises(FieldError):
                emit(next(step), bad)
        with pytest.raises(StepError):
            emit(0, {"a": 1.5, "v": [1.0, 2.0, 3.0, 4.0]})
        gc.collect()

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    some(20_000)
    before = resident()
    for _ in range(100):
        some(10_000)
    assert resident() - before < 1 << 20
    ring.close()
