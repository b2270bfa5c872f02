"""Staging areas: never a wait, each request is taken or counted as dropped, and what is half filled is never seen."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import ringreader
from rings import make, native, payload  # noqa: F401

from usp import _session
from usp._recorder import LOOK
from usp._ring import Consumer, Ring

CAPACITY = 10_000


def free(ring: Ring, i: int) -> None:
    """Does what the recorder does once it has taken a state."""
    with open(f"{ring.path}.stage{i}", "r+b") as f:
        f.seek(128)
        f.write(bytes(8))


def filler(byte: int, seen: list[int] | None = None):
    def fill(view: memoryview) -> None:
        view[:] = bytes([byte]) * len(view)
        if seen is not None:
            seen.append(len(view))

    return fill


def test_taken_dropped_and_taken_again(ring_dir: Path, native: bool) -> None:  # noqa: F811
    ring = make(ring_dir, native, staging_areas=2, staging_capacity=CAPACITY, generation=3)
    seen: list[int] = []
    assert ring.can_stage() and ring.stage(1, 7, CAPACITY, filler(1, seen)) and ring.can_stage()
    ring.emit(payload(0))
    assert ring.stage(2, 8, 0, filler(2, seen)) and not ring.can_stage()
    for step in (3, 4):
        assert not ring.stage(step, 0, 5, filler(9, seen))
    assert ring.drops == 2 and seen == [CAPACITY, 0]
    free(ring, 0)
    assert ring.can_stage() and ring.stage(5, 9, 3, filler(5, seen))
    free(ring, 1)
    for size in (CAPACITY + 1, -1, 1 << 40):
        assert not ring.stage(6, 0, size, filler(9, seen))
    assert ring.drops == 5 and ring.can_stage()
    ring.finish(True)
    assert not ring.stage(7, 0, 1, filler(9, seen)) and not ring.can_stage() and seen == [CAPACITY, 0, 3]
    r = ringreader.read(ring.path)
    assert r.drops == 5 and r.discarded == 0
    assert r.staged == [{"step": 5, "seq": 1, "generation": 3, "reason": 9, "content": "050505"}]
    ring.close()
    assert not ring.stage(8, 0, 1, filler(9, seen))


def test_order_is_that_of_the_requests(ring_dir: Path, native: bool) -> None:  # noqa: F811
    ring = make(ring_dir, native, staging_areas=3, staging_capacity=CAPACITY)
    for step in range(3):
        assert ring.stage(step, 1, 1, filler(step))
    free(ring, 1)
    free(ring, 0)
    assert ring.stage(3, 1, 1, filler(3)) and ring.stage(4, 1, 1, filler(4))
    assert [s["step"] for s in ringreader.read(ring.path).staged] == [2, 3, 4]
    ring.close()


def take(ring: Ring, i: int) -> None:
    """Does what the recorder does when it takes a state."""
    with open(f"{ring.path}.stage{i}", "r+b") as f:
        f.seek(128)
        f.write(b"\x03" + bytes(7))


def test_what_nobody_has_taken(ring_dir: Path, native: bool) -> None:  # noqa: F811
    ring = make(ring_dir, native, staging_areas=3, staging_capacity=CAPACITY)
    assert ring.untaken() is None
    for step in (5, 6):
        assert ring.stage(step, 1, 1, filler(step))
    assert ring.untaken() == 0
    free(ring, 0)
    assert ring.stage(7, 1, 1, filler(7)) and ring.untaken() == 1, "a later one in an earlier area"
    take(ring, 1)
    assert ring.untaken() == 2
    take(ring, 0)
    assert ring.untaken() is None
    assert ring.stage(8, 1, 1, lambda view: filler(8)(view) or ring.untaken()) and ring.untaken() == 3
    ring.close()
    assert ring.untaken() is None


def test_a_state_that_waits_is_a_starved_recorder(
    ring_dir: Path, native: bool, monkeypatch: pytest.MonkeyPatch  # noqa: F811
) -> None:
    ring = make(ring_dir, native, staging_areas=2, staging_capacity=CAPACITY, slots=64)
    clock = [100.0]
    monkeypatch.setattr(_session, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    starved = _session.Starved(ring, 64)

    def after(seconds: float) -> bool:
        clock[0] += seconds
        return starved(7)

    assert not after(0) and not after(10)
    assert ring.stage(1, 0, 1, filler(1))
    assert not after(10), "it may be new"
    assert not after(LOOK / 2) and after(LOOK / 2) and after(0)
    assert ring.stage(2, 0, 1, filler(2))
    take(ring, 0)
    assert not after(10) and after(LOOK), "another one"
    take(ring, 1)
    assert not after(10)
    ring.emit(payload(0))
    assert not after(10)
    ring.emit(payload(1))
    assert after(0), "1/32 of the slots"
    assert not starved(8), "it begins, and others may wait for it"
    assert not after(0) and not after(0.9) and after(0.2), "no longer"
    monkeypatch.setattr(ring, "consumer", lambda: Consumer(position=2 - 16))
    assert starved(8), "a quarter of the slots"
    monkeypatch.setattr(ring, "consumer", Consumer)
    assert not starved(7), "begins once more"
    monkeypatch.setattr(ring, "consumer", lambda: Consumer(fault=28, pid=6))
    assert after(10), "storage took nothing from another process, which has ended"
    monkeypatch.setattr(ring, "consumer", lambda: Consumer(fault=28, pid=7))
    assert not after(10), "storage takes nothing: they are left in the ring"
    for _ in range(48):
        assert not after(10)
        ring.emit(payload(0))
    assert after(10), "1/32 more than the 3/4 that are left there"
    monkeypatch.setattr(ring, "consumer", lambda: Consumer(position=40, fault=28, pid=7))
    assert not after(10)
    for _ in range(16):
        ring.emit(payload(0))
    assert not after(10) and not after(0.25), "a quarter in ten seconds"
    for _ in range(16):
        ring.emit(payload(0))
    assert after(0.25), "at such a pace less is left there: what is free is to last half a second"
    assert after(0.25), "a pace counts for a while"
    assert not after(10)
    ring.close()
    assert after(0)


def test_fill_that_raises(ring_dir: Path, native: bool) -> None:  # noqa: F811
    """The exception is passed on, nothing is staged, and the area is free."""
    ring = make(ring_dir, native, staging_areas=1, staging_capacity=CAPACITY)

    def bad(view: memoryview) -> None:
        view[:3] = b"bad"
        assert not ring.can_stage()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ring.stage(1, 1, 9, bad)
    r = ringreader.read(ring.path)
    assert (r.staged, r.discarded, ring.drops, ring.can_stage()) == ([], 0, 0, True)
    assert ring.stage(2, 1, 9, filler(2))
    ring.close()


def test_view_that_is_kept(ring_dir: Path, native: bool) -> None:  # noqa: F811
    """Against the rules, and still no crash: the view is dead, and views on the view keep the memory until they go."""
    ring = make(ring_dir, native, staging_areas=2, staging_capacity=CAPACITY)
    kept: list[memoryview] = []
    assert ring.stage(1, 1, 9, kept.append)
    with pytest.raises(ValueError, match="released"):
        kept[0][0] = 1
    assert ring.stage(2, 1, 9, lambda view: kept.append(view[1:3]))
    ring.close()
    kept[1][0] = 1
    kept[1].release()


def test_without_areas(ring_dir: Path, native: bool) -> None:  # noqa: F811
    ring = make(ring_dir, native)
    assert not ring.can_stage() and not ring.stage(1, 1, 0, filler(0)) and ring.drops == 1
    ring.close()


def test_threads_stage_at_once(ring_dir: Path, native: bool) -> None:  # noqa: F811
    """Two that stage at the same time get two areas; a third is dropped, not held up."""
    ring = make(ring_dir, native, staging_areas=2, staging_capacity=CAPACITY)
    inside, go, done = threading.Barrier(3), threading.Event(), []

    def slow(byte: int) -> None:
        def fill(view: memoryview) -> None:
            inside.wait(20)
            go.wait(20)
            view[:] = bytes([byte]) * len(view)

        done.append(ring.stage(byte, 1, 100, fill))

    threads = [threading.Thread(target=slow, args=(k,)) for k in (1, 2)]
    for t in threads:
        t.start()
    inside.wait(20)
    assert not ring.can_stage() and not ring.stage(3, 1, 1, filler(3)) and ring.drops == 1
    assert ring.emit(payload(0)) == 0  # records go on meanwhile
    go.set()
    for t in threads:
        t.join()
    assert done == [True, True]
    assert {(s["step"], s["content"]) for s in ringreader.read(ring.path).staged} == {(1, "01" * 100), (2, "02" * 100)}
    ring.close()


def test_ended_in_the_middle_of_a_request(
    ring_dir: Path,
    native: bool,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A handler of a signal that ends the ring waits for nothing that its own thread holds."""
    ring = make(ring_dir, native, staging_areas=1, staging_capacity=CAPACITY)
    look = ring._free_area

    def handler():
        area = look()
        ring.close()
        return area

    monkeypatch.setattr(ring, "_free_area", handler)
    assert not ring.stage(1, 1, 5, filler(1))
    assert ringreader.read(ring.path).staged == []


def test_closed_while_it_fills(ring_dir: Path, native: bool) -> None:  # noqa: F811
    """The recorder gives such an area up; the thread that fills finds its memory there until it is done."""
    ring = make(ring_dir, native, staging_areas=1, staging_capacity=CAPACITY)
    inside, go, done = threading.Event(), threading.Event(), []

    def fill(view: memoryview) -> None:
        inside.set()
        go.wait(20)
        view[:] = b"x" * len(view)

    t = threading.Thread(target=lambda: done.append(ring.stage(1, 1, CAPACITY, fill)))
    t.start()
    inside.wait(20)
    ring.close()
    go.set()
    t.join()
    r = ringreader.read(ring.path)
    assert done == [False] and r.staged == [] and r.discarded == 1
