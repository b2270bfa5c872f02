"""Records of device values on the emitter's own way to the queue, which no Python is run on."""

from __future__ import annotations

import gc
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from devicehelp import make_ring, records, slow, wait_for

from usp._device import DeviceQueue
from usp._errors import ClosedError, FieldError, StepError
from usp._pack import pack
from usp._ring import Ring, native_available
from usp._schema import Field

jax = pytest.importorskip("jax", reason="no jax here")
import jax.numpy as jnp  # noqa: E402

if why := native_available():
    pytest.skip(f"the extension is not here: {why}", allow_module_level=True)

SCALAR = [Field("loss", "metric", "f32", 1)]


@pytest.fixture
def way(ring_dir: Path) -> Iterator[Callable[..., tuple[Callable[..., None], DeviceQueue, Ring]]]:
    """Makes an emitter with a queue that has had a record, so that it knows what the next ones are like."""
    made: list[tuple[DeviceQueue, Ring]] = []

    def make(**options: Any) -> tuple[Callable[..., None], DeviceQueue, Ring]:
        ring = make_ring(ring_dir, SCALAR, f"run{len(made)}", slots=8192)
        queue = DeviceQueue(ring, ring.schema, **options)
        made.append((queue, ring))
        emit = ring.emitter(queue.put)
        queue.serve(emit.__self__)  # type: ignore[attr-defined]
        emit(0, value(0))
        emit(1, value(1))
        return emit, queue, ring

    yield make
    for queue, ring in made:
        queue.close(5)
        ring.close()


@jax.jit
def value(x: Any) -> dict[str, Any]:
    return {"loss": jnp.float32(x)}


def test_it_waits_for_a_step_on_the_device(way: Any) -> None:
    emit, queue, ring = way()
    wait_for(lambda: queue.written == 2)
    before = queue._reader.queued
    begin = slow(0.5)
    emit(begin().astype(jnp.int32) * 0 + 2, value(2))
    for step in range(3, 20):
        emit(step, value(step))
    emit(36, {"loss": 1.0})
    assert queue._reader.queued == before, "it took records whose turn was not known"
    wait_for(lambda: queue.pending() == 0)
    emit(40, value(40))
    emit(41, value(41))
    assert queue._reader.queued > before
    assert queue.close() == 0
    assert [r[0] for r in records(ring)] == [*range(20), 36, 40, 41]
    assert queue.dropped == 0


def test_it_takes_almost_all(way: Any) -> None:
    emit, queue, ring = way()
    for step in range(2, 500):
        emit(step, value(step), time=step if step % 2 else None)
    assert queue.close() == 0
    assert queue._reader.queued >= 490 and (queue.records, queue.written, queue.dropped) == (500, 500, 0)
    found = records(ring)
    assert [r[0] for r in found] == list(range(500))
    assert all(r[1] == r[0] for r in found[3::2]), "the time that was given"
    assert all(abs(r[1] - time.time_ns()) < 60e9 for r in found[::2]), "now"


def test_packed_records_too(way: Any) -> None:
    emit, queue, ring = way()
    program = jax.jit(lambda x: pack(ring.schema, {"loss": x}))
    for step in range(2, 100):
        emit(step, program(jnp.float32(step)))
    assert queue.close() == 0 and queue._reader.queued >= 90
    assert [r[0] for r in records(ring)] == list(range(100))


def test_what_is_wrong_is_said_as_ever(way: Any) -> None:
    emit, queue, ring = way()
    gone, before = value(2), queue.records
    gone["loss"].delete()
    for step, values, error in (
        (1, value(1), StepError), (-1, value(1), StepError), (1 << 64, value(1), StepError), ("2", value(1), StepError),
        (2, gone, FieldError), (2, {"los": value(1)["loss"]}, FieldError), (2, {**value(1), "b": 1}, FieldError),
        (2, jnp.zeros(1), FieldError), (2, {"loss": jnp.zeros(2)}, FieldError),
    ):  # fmt: skip
        with pytest.raises(error):
            emit(step, values)
    assert queue.records == before, "nothing was queued"
    emit(2, value(2))
    queue.close()
    with pytest.raises(ClosedError):
        emit(3, value(3))
    assert [r[0] for r in records(ring)] == [0, 1, 2]


def test_a_thread_that_rests_is_woken(way: Any) -> None:
    emit, queue, ring = way()
    for step in range(2, 8, 2):
        wait_for(lambda: queue._idle)
        emit(step, value(step))
        emit(step + 1, value(step))
        wait_for(lambda n=step: ring.position == n + 2)


def test_a_full_queue_drops_and_counts(way: Any) -> None:
    emit, queue, ring = way(capacity=8)
    wait_for(lambda: ring.position == 2)
    begin, there = slow(1.0), value(3)
    emit(2, {"loss": begin()})
    for step in range(3, 103):
        emit(step, there)
    assert (queue.records, queue.dropped) == (103, 93)
    assert queue.close() == 0
    assert [r[0] for r in records(ring)] == list(range(10))


def test_one_waits_for_another_that_is_about_to_queue(way: Any) -> None:
    emit, queue, ring = way()
    with queue._lock:
        other = threading.Thread(target=emit, args=(2, value(2)))
        other.start()
        time.sleep(0.05)
        assert queue.records == 2, "it would come before one that has its step already"
    other.join()
    assert queue.records == 3


def test_host_records_keep_their_place_behind_it(way: Any) -> None:
    emit, queue, ring = way()
    begin = slow(0.05)
    for step in range(2, 42, 2):
        wait_for(lambda: not queue.emitter.deferred)
        emit(step, {"loss": begin()})
        emit(step + 1, {"loss": 1.0})
    assert queue.close() == 0 and queue._reader.queued > 0
    assert [r[0] for r in records(ring)] == list(range(42))


def test_what_the_thread_has_to_tell_is_told_by_the_next(way: Any) -> None:
    emit, queue, ring = way()
    begin = slow(0.3)
    emit(2, {"loss": begin()})
    late = value(3)
    emit(3, late)
    late["loss"].delete()
    emit(4, value(4))
    wait_for(lambda: queue.written + queue.dropped == 5)
    with pytest.warns(RuntimeWarning, match="1 record had a buffer that was donated or deleted"):
        emit(5, value(5))
    emit(6, value(6))
    assert queue.close() == 0
    assert [r[0] for r in records(ring)] == [0, 1, 2, 4, 5, 6]


def test_nothing_of_it_stays(ring_dir: Path) -> None:
    """Emitter, queue and reader know each other; whoever used them lets go of all."""
    ring = make_ring(ring_dir, SCALAR)

    class Owner:
        def __init__(self) -> None:
            self.emit = ring.emitter(self.slow)
            self.queue = DeviceQueue(ring, ring.schema, emitter=self.emit.__self__)  # type: ignore[attr-defined]

        def slow(self, step: int, values: Any, time: int | None = None) -> None:
            self.queue.put(step, values, time)

    owner = Owner()
    for step in range(50):
        owner.emit(step, value(step))
    assert owner.queue.close() == 0 and owner.queue._reader.queued > 0
    gone = [weakref.ref(owner), weakref.ref(owner.queue)]
    del owner
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    ring.close()


def test_threads_that_emit_at_once_are_all_accounted_for(way: Any) -> None:
    emit, queue, ring = way(capacity=64)
    steps, refused = itertools.count(2), itertools.count()
    values = [value(i) for i in range(8)]

    def work() -> None:
        for i in range(2000):
            try:
                emit(next(steps), values[i % 8])
            except StepError:  # another was quicker with a later one
                next(refused)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    queue.close()
    assert queue.records + next(refused) == 8002 and queue.records == queue.written + queue.dropped
    found = [r[0] for r in records(ring)]
    assert found == sorted(set(found)) and len(found) == queue.written
    assert queue._reader.queued > 0
