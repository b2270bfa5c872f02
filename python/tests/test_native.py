"""What only the extension has: its sum, its handles, its ordered words, and that it lets go of everything."""

from __future__ import annotations

import gc
import os
import random
import struct
import subprocess
import threading
import zlib
from pathlib import Path
from typing import Any

import pytest
import ringreader
from rings import child, make, payload, whole
from usp._errors import ClosedError, RingError
from usp._ring import native_available

if why := native_available():
    pytest.skip(f"the extension is not here: {why}", allow_module_level=True)

from usp import _native

CLOSED, FORKED, LENGTH = 2, 3, 4


@pytest.mark.parametrize("by_table", [True, False])
def test_sum_is_that_of_zlib(by_table: bool) -> None:
    """Every length up to some, long ones, at every alignment."""
    if not by_table and not _native.clmul:
        pytest.skip("SKIPPED: this processor does not multiply polynomials; the table is tested alone")
    r = random.Random(7)
    noise = r.randbytes(70_000)
    for words in [*range(1, 300), 511, 512, 513, 4096, 8191]:
        for shift in (0, 8 * (words % 5) + words % 8):
            part = noise[shift : shift + 8 * words]
            done = r.choice([2, 4, 1 << 32, (1 << 63) - 2, r.getrandbits(63)])
            want = zlib.crc32(struct.pack("<QI", done, 8 * words) + part)
            assert _native.record_crc(done, memoryview(noise)[shift : shift + 8 * words], by_table) == want, words
    for fill in (b"\0", b"\xff"):
        for words in (1, 2, 15, 16, 17, 64):
            want = zlib.crc32(struct.pack("<QI", 2, 8 * words) + fill * 8 * words)
            assert _native.record_crc(2, fill * 8 * words, by_table) == want


def test_handles(ring_dir: Path) -> None:
    """A stale handle is a counted drop, also when its place in the table has another ring."""
    ring = make(ring_dir, True)
    handle, before = ring.handle(), _native.dropped()
    assert handle > 0 and _native.emit_by_handle(handle, payload(0)) == 0
    assert ring.position == 1 and ring.emit(payload(1)) == 1 and _native.emit_by_handle(handle, payload(2)) == 0
    assert _native.emit_by_handle(handle, payload(0)[:16]) == LENGTH
    assert _native.dropped() == before + 1 and ring.last_step == -1
    ring.finish(True)
    whole(r := ringreader.read(ring.path))
    assert r.produced == 3
    assert _native.emit_by_handle(handle, payload(0)) == CLOSED
    for other in (0, -1, -(1 << 31), (1 << 31) - 1, handle + (1 << 8), handle + 1):
        assert _native.emit_by_handle(other, payload(0)) == CLOSED
    assert _native.dropped() == before + 8
    ring.close()
    os.unlink(ring.path)
    others = []
    for i in range(5):
        others.append(make(ring_dir, True))
        os.rename(others[-1].path, ring_dir / f"{i}.ring")
    assert len({handle, *(o.handle() for o in others)}) == 6
    assert _native.emit_by_handle(handle, payload(0)) == CLOSED and all(o.position == 0 for o in others)
    for o in others:
        o.close()


def test_pure_rings_have_no_handle(ring_dir: Path) -> None:
    ring = make(ring_dir, False)
    with pytest.raises(RingError, match="no native writer"):
        ring.handle()
    ring.close()


def test_handle_in_a_forked_child(ring_dir: Path) -> None:
    code = (
        "import os, sys; from usp._ring import Ring; from usp import _native; from usp._schema import *\n"
        "ring = Ring(sys.argv[1], 'x', Schema('a', fields(a=('metric', 1))), b'{}', slots=8)\n"
        "os.register_at_fork(after_in_child=lambda: None)\n"
        "def bad(): \n"
        "    pid = os.fork()\n"
        "    if pid == 0: os._exit(10 * _native.emit_by_handle(ring.handle(), bytes(24)) + _native.dropped())\n"
        "    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])\n"
        "print('ready')\n"
        "print(bad(), _native.emit_by_handle(ring.handle(), bytes(24)), ring.position, _native.dropped())\n"
    )
    p = child(code, str(ring_dir / "a.ring"))
    assert p.stdout and p.stdin
    assert p.stdout.read() == f"{10 * FORKED + 1} 0 1 0\n"
    p.stdout.close(), p.stdin.close(), p.wait()


def test_too_many_rings(ring_dir: Path) -> None:
    rings = []
    try:
        with pytest.raises(RingError, match="256 rings"):
            for i in range(257):
                rings.append(make(ring_dir / ".", True))
                os.rename(rings[-1].path, ring_dir / f"{i}.ring")
        assert len(rings) == 256 and not (ring_dir / "a.ring").exists()
    finally:
        for ring in rings:
            ring.close()
    make(ring_dir, True).close()


def test_closed_while_compiled_code_writes(ring_dir: Path) -> None:
    """Threads without the interpreter's lock write on while rings are closed under them: nothing is written to what is
    not mapped any more, and each record is written or counted as dropped."""
    before, total = _native.dropped(), 0
    for i in range(20):
        ring = make(ring_dir, True, slots=1 << 12)
        handle, written, stop = ring.handle(), [0] * 3, threading.Event()

        def work(k: int, handle: int = handle, written: list[int] = written, stop: threading.Event = stop) -> None:
            while not stop.is_set():
                _native.emit_by_handle(handle, payload(7))
                written[k] += 1

        threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
        for t in threads:
            t.start()
        while ring.position < 50 * (i + 1):
            pass
        ring.close()
        stop.set()
        for t in threads:
            t.join()
        r = ringreader.read(ring.path)
        assert all(p == payload(7) for _, p in r.records) and all(why == "overrun" for _, _, why in r.lost)
        total += sum(written) - r.produced
        assert _native.dropped() - before == total
        os.unlink(ring.path)


def test_python_and_compiled_code_together(ring_dir: Path) -> None:
    ring = make(ring_dir, True, slots=1 << 15)
    emit, handle = ring.emitter(lambda *_: None), ring.handle()

    def compiled() -> None:
        for _ in range(2000):
            assert _native.emit_by_handle(handle, payload(1)) == 0

    threads = [threading.Thread(target=compiled) for _ in range(2)]
    for t in threads:
        t.start()
    for step in range(2000):
        emit(step, {"a": float(step)}, 9)
    ring.emit_block(payload(2) * 5000)  # without the interpreter's lock
    for t in threads:
        t.join()
    ring.finish(True)
    r = ringreader.read(ring.path)
    assert not r.lost and r.produced == 2000 + 4000 + 5000
    mine = [p for _, p in r.records if p not in (payload(1), payload(2))]
    assert mine == [struct.pack("<Qqd", step, 9, float(step)) for step in range(2000)]
    assert sum(p == payload(1) for _, p in r.records) == 4000
    ring.close()


def test_block_that_changes_while_it_is_written(ring_dir: Path) -> None:
    """The sum is over what was written, not over what the buffer holds by then: no record is torn."""
    ring = make(ring_dir, True, slots=1 << 12)
    block = bytearray(payload(0) * (1 << 12))
    stop = threading.Event()

    def change() -> None:
        x = 0
        while not stop.is_set():
            x ^= 0xFF
            block[:] = bytes([x]) * len(block)

    t = threading.Thread(target=change)
    t.start()
    try:
        for _ in range(60):
            ring.emit_block(block)
            assert len(ringreader.read(ring.path).records) == 1 << 12
    finally:
        stop.set()
        t.join()
    ring.close()


def test_writer_refuses_slots_outside(ring_dir: Path) -> None:
    ring = make(ring_dir, False)
    m: Any = ring._files[0].map
    good = (4096, 64, 8, 24)
    _native.Writer(m, *good).close()
    for bad in (
        (0, 64, 8, 24),
        (4096, 64, 9, 24),
        (4096, 64, 1, 24),
        (4096, 64, 16, 24),
        (4096, 48, 8, 24),
        (4096, 64, 8, 56),
        (4096, 64, 8, 0),
        (4096, 64, 8, 20),
        (1 << 63, 64, 8, 24),
        (4096, 1 << 62, 8, 24),
        (4096, 64, 1 << 62, 24),
    ):
        with pytest.raises(ValueError, match="slots"):
            _native.Writer(m, *bad)
    for wrong in (b"\0" * 8192, 3, None):
        with pytest.raises((TypeError, BufferError)):
            _native.Writer(wrong, *good)
    ring.close()


def test_closed_and_collected(ring_dir: Path) -> None:
    """The emitter in a cycle with what it calls is collected; a ring that is dropped unclosed does no harm."""
    released = []

    class Owner:
        def __init__(self) -> None:
            self.ring = make(ring_dir, True)
            self.emit = self.ring.emitter(self.slow)

        def slow(self, *_: object) -> None:
            pass

        def __del__(self) -> None:
            released.append(1)

    owner = Owner()
    emit = owner.emit
    writer = owner.ring._writer
    owner.ring.close()
    del owner
    gc.collect()
    with pytest.raises(ClosedError):
        emit(1, {"a": 1.0})
    with pytest.raises(ClosedError):
        writer.emit(payload(0))
    del emit
    gc.collect()
    assert released == [1]


def test_words(ring_dir: Path) -> None:
    b = bytearray(64)
    with memoryview(b) as m:
        start = next(i for i in range(8) if _aligned(m, i))
        _native.store(m, start + 8, (1 << 64) - 2)
        assert (
            _native.load(m, start + 8) == (1 << 64) - 2 and b[start + 8] == 0xFE and b[start + 7] == b[start + 16] == 0
        )
        for bad in (start + 1, start + 4, 64, 57, 1 << 62, -8):
            with pytest.raises((ValueError, OverflowError)):
                _native.load(m, bad)
    with pytest.raises((TypeError, BufferError)):
        _native.store(bytes(64), 0, 1)


def _aligned(m: memoryview, offset: int) -> bool:
    try:
        _native.load(m, offset)
    except ValueError:
        return False
    return True


def test_numpy_is_found_when_it_comes(ring_dir: Path) -> None:
    """The extension does not import numpy, and knows its arrays once a program has."""
    pytest.importorskip("numpy")
    code = (
        "import sys; from usp._ring import Ring; from usp._schema import *\n"
        "ring = Ring(sys.argv[1], 'x', Schema('a', fields(a=('metric', 2))), b'{}', slots=8, native=True)\n"
        "slow = []; emit = ring.emitter(lambda *a: slow.append(a))\n"
        "emit(1, {'a': object()}); assert 'numpy' not in sys.modules and len(slow) == 1\n"
        "import numpy; emit(1, {'a': numpy.ones(2)}); emit(numpy.int32(2), {'a': (numpy.float32(1), 1)})\n"
        "print('ready'); print(len(slow), ring.position)\n"
    )
    p = child(code, str(ring_dir / "a.ring"))
    assert p.stdout and p.stdin
    assert p.stdout.read() == "1 2\n"
    p.stdout.close(), p.stdin.close(), p.wait()


def test_only_stable_symbols() -> None:
    """The extension asks for nothing outside the stable ABI: CPython's private names begin with _Py."""
    try:
        done = subprocess.run(
            ["nm", "-D", "--undefined-only", _native.__file__], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as e:
        pytest.skip(f"SKIPPED: no nm to list the symbols with: {e}")
    names = {line.split()[-1] for line in done.stdout.splitlines()}
    private = {n for n in names if n.startswith("_Py") and not n.endswith(("Struct", "_SizeT", "_Dealloc"))}
    assert "PyErr_Format" in names and private == set() and ".abi3." in _native.__file__
