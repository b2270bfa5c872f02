"""The extension's part of the queue of device values: the same words as Python makes, and the same order and counts."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from devicehelp import F32_BITS, F64_BITS, make_ring, records, slow, wait_for

from usp._device import DeviceQueue
from usp._pack import _ACCEPTED
from usp._ring import Ring, native_available
from usp._schema import Field

jax = pytest.importorskip("jax", reason="no jax here")
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental.layout import Format, Layout  # noqa: E402

if why := native_available():
    pytest.skip(f"the extension is not here: {why}", allow_module_level=True)

N = 65536
SCALAR = [Field("loss", "metric", "f32", 1)]


@pytest.fixture(autouse=True)
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def queue_of(directory: Path, fields: list[Field], **options: Any) -> tuple[DeviceQueue, Ring]:
    ring = make_ring(directory, fields, slots=8192)
    return DeviceQueue(ring, ring.schema, **options), ring


def bits(dtype: str) -> np.ndarray:
    """Every element there is if they are of 16 bits or less; else all kinds of special ones, and random ones."""
    size = np.dtype(dtype).itemsize
    rng = np.random.default_rng(3)
    if dtype == "bool":
        return rng.integers(0, 2, N).astype(bool)
    if size <= 2:
        return np.arange(N).astype(f"u{size}").view(dtype)
    special = np.array(F64_BITS if size == 8 else F32_BITS, f"u{size}")
    edges = np.array([0, 1, 2**24 + 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1], f"u{size}")
    small = rng.integers(0, 1 << 23, 4096).astype(f"u{size}")  # subnormals, as floats
    drawn = rng.integers(0, 1 << 8 * size, N - len(special) - len(edges) - len(small), dtype=f"u{size}")
    return np.concatenate([special, edges, small, drawn]).view(dtype)


@pytest.mark.parametrize("typ", list(_ACCEPTED))
def test_the_extension_makes_the_words_that_python_makes(ring_dir: Path, typ: str) -> None:
    for dtype in sorted(_ACCEPTED[typ] - {"bfloat16"}):  # of which there is no buffer
        given = bits(dtype)
        value = jnp.asarray(given)
        assert value.dtype == dtype
        rows = []
        for native in (True, False):
            ring = make_ring(ring_dir, [Field("a", "metric", typ, N)], f"{dtype}{native}", slots=2, native=native)
            queue = DeviceQueue(ring, ring.schema)
            queue.put(1, {"a": value}, time=2)
            assert queue.close() == 0
            rows += records(ring)
            if native:
                assert queue._reader.written == 1, f"Python wrote the {dtype}"
            ring.close()
        assert rows[0] == rows[1], f"{dtype} in a field of {typ}"


def test_fields_of_the_host_and_packed_records_are_taken_too(ring_dir: Path) -> None:
    fields = [Field("a", "metric", "f64", 2), Field("b", "metric", "f64", 1), Field("c", "metric", "i64", 1)]
    queue, ring = queue_of(ring_dir, fields)
    values = {"a": jnp.asarray([1.5, -0.0]), "b": 0.1, "c": np.int32(-3)}
    queue.put(1, values, time=5)
    queue.put(2, jax.jit(lambda: jnp.arange(8, dtype=jnp.uint32))(), time=6)
    assert queue.close() == 0
    assert queue._reader.written == 2
    rows = np.array(records(ring), np.uint64)
    assert rows[0, 2:5].view(np.float64).tolist() == [1.5, 0.0, 0.1]
    assert rows[0, [3, 5]].tolist() == [1 << 63, 2**64 - 3]
    assert rows[1].tolist() == [2, 6, 1 << 32, 2 | 3 << 32, 4 | 5 << 32, 6 | 7 << 32]


def test_arrays_in_another_order_of_memory_are_left_to_python(ring_dir: Path) -> None:
    queue, ring = queue_of(ring_dir, [Field("a", "metric", "f64", 6)])
    columns = Format(Layout((1, 0)), jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    turned = jax.jit(lambda x: x + 0, out_shardings=columns)(jnp.arange(6.0).reshape(2, 3))
    for step in range(3):
        queue.put(step, {"a": turned})
    assert queue.close() == 0
    assert queue._reader.written == 0
    for row in records(ring):
        assert np.array(row[2:], np.uint64).view(np.float64).tolist() == [0, 1, 2, 3, 4, 5]


def test_what_is_ready_does_not_wait_for_what_is_behind_it(ring_dir: Path) -> None:
    queue, ring = queue_of(ring_dir, [Field("a", "metric", "f64", 1), Field("b", "metric", "f64", 1)])
    begin, ready = slow(1.0), jnp.float32(1)
    queue.put(1, {"a": ready, "b": ready})
    hung = begin()
    queue.put(2, {"a": ready, "b": hung})  # of two programs, one of which is done
    wait_for(lambda: ring.position == 1)
    assert not hung.is_ready(), "the first waited for the second"
    assert queue.close(30) == 0
    assert [r[0] for r in records(ring)] == [1, 2]


def test_records_of_all_kinds_keep_their_order(ring_dir: Path) -> None:
    """Those that the extension writes, those that it leaves to Python, of the host, and stacked, as chance has it."""
    queue, ring = queue_of(ring_dir, SCALAR, capacity=1 << 14)
    emit = ring.emitter(queue.put)
    queue.serve(emit.__self__)
    rng = random.Random(5)
    number = jax.jit(lambda i: i.astype(jnp.float32))
    step, kinds, begin = 0, ("device", "device", "bfloat16", "host", "stacked"), slow(0.02)
    while step < 3000:
        kind = rng.choice(kinds)
        for _ in range(rng.choice((1, 1, 3, 20))):
            x = number(step)
            if kind == "device":
                emit(step, {"loss": x})
            elif kind == "bfloat16":
                emit(step, {"loss": x.astype(jnp.bfloat16)})
            elif kind == "host":
                emit(step, {"loss": float(step)})
            else:
                queue.put_many([step, step + 1], {"loss": jnp.stack([x, x])})
                step += 1
            step += 1
        if rng.random() < 0.02:
            emit(step, {"loss": begin() * 0 + step})  # those behind it wait
            step += 1
        if rng.random() < 0.1:
            time.sleep(rng.choice((0.001, 0.01, 0.05)))
    assert queue.close() == 0
    rows = np.array(records(ring), np.uint64)
    assert rows[:, 0].tolist() == list(range(step))
    assert 0 < queue._reader.written < queue.written, "only one of the two has written"
    assert queue.written <= step == ring.position, "a host record does not find its way past an empty queue"


def test_a_record_on_its_way_into_the_queue_keeps_those_of_the_host_behind_it(ring_dir: Path) -> None:
    queue, ring = queue_of(ring_dir, SCALAR)
    emit = ring.emitter(queue.put)
    queue.serve(emit.__self__)
    begin = slow(0.2)
    emit(1, {"loss": begin()})
    with queue._lock:  # as in the middle of a put
        wait_for(lambda: queue.written == 1 and not queue._entries)
        time.sleep(0.05)
        assert queue.emitter.deferred, "a host record would overtake the one that is about to be queued"
    emit(2, {"loss": 2.0})
    wait_for(lambda: not queue.emitter.deferred)
    assert queue.close() == 0
    assert [r[0] for r in records(ring)] == [1, 2]


def test_values_that_are_alike_are_seen_to_be(ring_dir: Path) -> None:
    queue, ring = queue_of(ring_dir, [Field("a", "metric", "f64", 2), Field("b", "flag", "u64", 1)])
    program = jax.jit(lambda x: {"a": x, "b": (x[0] > 0).astype(jnp.uint32)})
    one, two = program(jnp.ones(2)), program(jnp.zeros(2))
    assert queue._reader.leaves(one) is None, "nothing was learned"
    queue.put(1, one)
    leaves = queue._reader.leaves(two)
    assert [x is y for x, y in zip(leaves, two.values(), strict=True)] == [True, True]
    place, gone = two["a"].sharding, program(jnp.zeros(2))
    gone["b"].delete()
    for values in (
        gone, {"a": two["a"]}, {**two, "c": 1}, {"a": two["b"], "b": two["b"]}, {**two, "a": np.ones(2)},
        {**two, "a": jax.device_put(jnp.ones(3), place)}, {"a": two["a"], "c": two["b"]}, None,
        {**two, "a": jax.device_put(jnp.ones(2, jnp.float32), place)},
        {**two, "a": jax.device_put(two["a"], jax.sharding.SingleDeviceSharding(jax.devices()[0]))},
    ):  # fmt: skip
        assert queue._reader.leaves(values) is None, values
    assert queue.close() == 0
    ring.close()


def test_the_thread_wakes_less_often_than_there_are_records(ring_dir: Path) -> None:
    """A loop of 1 ms steps: a wake-up costs more than a record."""
    queue, ring = queue_of(ring_dir, SCALAR)
    values = [{"loss": x} for x in jax.block_until_ready([jnp.float32(k) for k in range(600)])]
    woken, first = 501, 0
    for _ in range(3):  # one in which the machine did other things, and steps were longer, does not count
        for step in range(600):
            queue.put(first + step, values[step])
            if step == 100:
                before = switches(queue)
            time.sleep(0.001)
        woken, first = min(woken, switches(queue) - before), first + 600
        if woken <= 400:
            break
    assert queue.close() == 0
    ring.close()
    assert woken <= 400, "for 500 records"


def switches(queue: DeviceQueue) -> int:
    assert queue._thread is not None
    with open(f"/proc/{os.getpid()}/task/{queue._thread.native_id}/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("voluntary_ctxt"))
