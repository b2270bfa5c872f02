"""Device values through the queue: exact bits, order, counts, and a caller that never waits."""

from __future__ import annotations

import os
import random
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from devicehelp import F32_BITS, F64_BITS, make_ring, records, slow, wait_for, widened

from usp._device import DeviceQueue, pack
from usp._errors import ClosedError, DroppedWarning, FieldError, ForkedError, StepError
from usp._ring import Ring, native_available
from usp._schema import Field

jax = pytest.importorskip("jax", reason="no jax here")
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

FIELDS = [
    Field("loss", "metric", "f64", 1),
    Field("rho", "digest", "f64", len(F64_BITS)),
    Field("small", "metric", "f32", len(F32_BITS)),
    Field("half", "metric", "f64", 3),
    Field("count", "metric", "i64", 2),
    Field("flags", "flag", "u64", 3),
]


# What is about the queue alone, and not about the way to it.
by_itself = pytest.mark.parametrize("queue_of", ["native", "pure"], indirect=True)


@pytest.fixture(params=["native", "pure", "emitter"])
def queue_of(ring_dir: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., tuple[DeviceQueue, Ring]]]:
    """Makes queues on rings of their own; closes both afterwards. With "emitter" records are put by way of that."""
    made: list[tuple[DeviceQueue, Ring]] = []
    native = request.param != "pure"
    if native and (why := native_available()):
        pytest.skip(f"the extension is not here: {why}")

    def make(fields: list[Field] | None = None, **options: Any) -> tuple[DeviceQueue, Ring]:
        ring = make_ring(ring_dir, fields or FIELDS, f"run{len(made)}", native=native)
        queue = DeviceQueue(ring, ring.schema, **options)
        if request.param == "emitter":
            emit = ring.emitter(queue.put)
            queue.serve(emit.__self__)

            def put(*args: Any, **kwargs: Any) -> bool:
                dropped = queue.dropped
                emit(*args, **kwargs)
                return queue.dropped == dropped

            queue.put = put  # type: ignore[method-assign]
        made.append((queue, ring))
        return queue, ring

    yield make
    for queue, ring in made:
        queue.close(5)
        ring.close()


@pytest.fixture(params=[True, False], ids=["x64", "x32"])
def x64(request: pytest.FixtureRequest) -> Iterator[bool]:
    with jax.enable_x64(request.param):
        yield request.param


def special(x64: bool, n: int | None = None) -> dict[str, Any]:
    """Values of FIELDS on the device, stacked n times if given. Without x64 rho is of float32."""
    rho = np.array(F64_BITS, np.uint64).view(np.float64) if x64 else np.array(F32_BITS, np.uint32).view(np.float32)
    values = {
        "loss": jnp.asarray(np.array([0x7FC01234], np.uint32).view(np.float32))[0],
        "rho": jnp.asarray(rho),
        "small": jnp.asarray(np.array(F32_BITS, np.uint32).view(np.float32)),
        "half": jnp.asarray(np.array([0x1, 0x8000, 0x3F81], np.uint16).view(jnp.bfloat16)),
        "count": jnp.asarray([-1, 2**31 - 1], jnp.int32),
        "flags": jnp.asarray([True, False, True]),
    }
    return values if n is None else {k: jnp.asarray(np.stack([np.asarray(v)] * n)) for k, v in values.items()}


def special_words(x64: bool) -> tuple[int, ...]:
    """The words of special's fields in the order of the schema."""
    wide32 = [widened(b, 8, 23) for b in F32_BITS]
    rho = F64_BITS if x64 else wide32
    half = [widened(b, 8, 7) for b in (0x1, 0x8000, 0x3F81)]
    return (widened(0x7FC01234, 8, 23), *wide32, *half, 2**64 - 1, 2**31 - 1, 1, 0, 1, *rho)


SCALAR = [Field("loss", "metric", "f32", 1)]


# Bits


@pytest.mark.parametrize("packed", [False, True], ids=["mapping", "packed"])
def test_every_bit_arrives(queue_of: Any, x64: bool, packed: bool) -> None:
    queue, ring = queue_of()
    values = special(x64)
    if not x64:  # the field holds float64, the device has none: one value for each of its elements
        values["rho"] = values["rho"][: len(F64_BITS)]
    queue.put(7, jax.jit(lambda v: pack(ring.schema, v))(values) if packed else values, time=-5)
    assert queue.close() == 0
    assert records(ring) == [(7, 2**64 - 5, *special_words(x64))]


@pytest.mark.parametrize("packed", [False, True], ids=["mapping", "packed"])
def test_every_bit_arrives_of_stacked_records(queue_of: Any, x64: bool, packed: bool) -> None:
    queue, ring = queue_of()
    n = 1100  # more than one block
    values: Any = special(x64, n)
    if packed:
        values = jax.jit(jax.vmap(lambda v: pack(ring.schema, v)))(values)
    queue.put_many(range(3, 3 + n), values, times=np.arange(n))
    assert queue.close() == 0
    assert records(ring) == [(3 + i, i, *special_words(x64)) for i in range(n)]
    assert (queue.records, queue.written, queue.dropped) == (n, n, 0)


def test_host_and_device_values_in_one_record(queue_of: Any) -> None:
    kinds = {"a": ("f64", 2), "b": ("f64", 1), "c": ("i64", 1), "d": ("f64", 2)}
    queue, ring = queue_of([Field(name, "metric", typ, n) for name, (typ, n) in kinds.items()])
    mutable = np.array([1.5, 2.5])
    queue.put(1, {"a": mutable, "b": 0.1, "c": np.int32(-3), "d": jnp.asarray([3.0, 4.0], jnp.float32)})
    mutable[:] = 9
    queue.put_many(
        [2, 5], {"a": np.ones((2, 2)), "b": [1, 2.5], "c": np.array([7, 8]), "d": jnp.ones((2, 2), jnp.float32)}
    )
    assert queue.close() == 0
    rows = np.array(records(ring), np.uint64)
    assert rows[:, 0].tolist() == [1, 2, 5]
    assert rows[:, 2:5].view(np.float64).tolist() == [[1.5, 2.5, 0.1], [1, 1, 1], [1, 1, 2.5]]
    assert rows[:, 5].view(np.int64).tolist() == [-3, 7, 8]
    assert rows[:, 6:].view(np.float64).tolist() == [[3, 4], [1, 1], [1, 1]]


def test_packed_words_of_the_host_are_copied(queue_of: Any) -> None:
    queue, ring = queue_of(SCALAR)
    packed = np.array(pack(ring.schema, {"loss": 2.5}))
    queue.put(1, {"loss": slow(0.2)()})  # so that the next one waits
    queue.put(2, packed)
    queue.put_many([3, 4], np.stack([packed, packed]))
    packed[:] = 0
    assert queue.close() == 0
    assert np.array(records(ring), np.uint64)[1:, 2].view(np.float64).tolist() == [2.5] * 3


def test_time_of_a_record_is_that_of_the_call(queue_of: Any) -> None:
    queue, ring = queue_of(SCALAR)
    begin = slow(0.3)
    before = time.time_ns()
    queue.put(1, {"loss": begin()})
    after = time.time_ns()
    queue.close()
    assert before <= records(ring)[0][1] <= after


# Order and counts


def test_a_blocked_device_and_a_full_queue_do_not_hold_the_caller(queue_of: Any) -> None:
    queue, ring = queue_of(SCALAR, capacity=8)
    blocked = slow(3.0)()
    ready = jnp.float32(2)
    accepted = [queue.put(1, {"loss": blocked})]
    longest = 0.0
    for step in range(2, 102):
        began = time.perf_counter()
        accepted.append(queue.put(step, {"loss": ready}))
        longest = max(longest, time.perf_counter() - began)
    assert not blocked.is_ready(), "the computation was too short to show anything"
    assert accepted == [True] * 8 + [False] * 93
    assert longest < 1
    assert queue.dropped == 93
    assert queue.pending() == 8
    assert queue.close(30) == 0
    assert [r[0] for r in records(ring)] == list(range(1, 9))
    assert (queue.records, queue.written, queue.dropped) == (101, 8, 93)


@by_itself
def test_host_records_keep_their_place_behind_queued_ones(queue_of: Any) -> None:
    queue, ring = queue_of(SCALAR)
    emit = ring.emitter(queue.put)
    queue.serve(emit.__self__)
    emit(1, {"loss": 1.0})
    assert ring.position == 1
    begin = slow(0.4)
    emit(2, {"loss": begin()})
    emit(3, {"loss": 3.0})
    emit(4, {"loss": begin()})
    assert ring.position == 1, "the host record overtook"
    wait_for(lambda: ring.position == 3)
    emit(5, {"loss": 5.0})
    assert ring.position == 3, "the host record overtook when the queue was empty but for one"
    wait_for(lambda: ring.position == 5)
    wait_for(lambda: not queue.emitter.deferred)
    emit(6, {"loss": 6.0})
    assert ring.position == 6, "a host record still goes round by the queue that is empty"
    queue.close()
    assert [r[0] for r in records(ring)] == [1, 2, 3, 4, 5, 6]


def test_a_queue_that_was_empty_wakes(queue_of: Any) -> None:
    queue, ring = queue_of(SCALAR)
    for step in range(3):
        queue.put(step, {"loss": jnp.float32(1)})
        wait_for(lambda n=step: ring.position == n + 1)
        wait_for(lambda: queue._idle)


def test_many_records_all_arrive_in_order(queue_of: Any) -> None:
    queue, ring = queue_of([Field("a", "metric", "f32", 2)], capacity=5000)
    step_fn = jax.jit(lambda i: jnp.stack([i, i + 1]).astype(jnp.float32))
    for i in range(3000):
        queue.put(i, {"a": step_fn(i)})
    assert queue.close() == 0
    rows = np.array(records(ring), np.uint64)
    assert rows[:, 0].tolist() == list(range(3000))
    assert rows[:, 2].view(np.float64).tolist() == list(range(3000))


@by_itself
def test_puts_of_several_threads_are_all_accounted_for(queue_of: Any) -> None:
    queue, ring = queue_of(SCALAR, capacity=64)
    x = jnp.float32(1)
    lock, counter, refused = threading.Lock(), iter(range(10**9)), [0]

    def work() -> None:
        for _ in range(400):
            with lock:
                if not queue.put(next(counter), {"loss": x}):
                    refused[0] += 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    queue.close()
    assert queue.records == 1600 == queue.written + queue.dropped
    assert queue.dropped == refused[0]
    assert len(records(ring)) == queue.written


def test_several_queues_at_once(queue_of: Any) -> None:
    pairs = [queue_of(SCALAR) for _ in range(3)]
    for i in range(50):
        for k, (queue, _) in enumerate(pairs):
            queue.put(i, {"loss": jnp.float32(10 * k + i)})
    for k, (queue, ring) in enumerate(pairs):
        assert queue.close() == 0
        got = np.array(records(ring), np.uint64)[:, 2].view(np.float64).tolist()
        assert got == [10 * k + i for i in range(50)]


def test_stacked_outputs_of_scan(queue_of: Any) -> None:
    queue, ring = queue_of([Field("a", "metric", "f32", 1), Field("b", "flag", "u64", 1)])

    def body(c: Any, _: Any) -> Any:
        return c + 1, (c, pack(ring.schema, {"a": c.astype(jnp.float32), "b": c > 3}))

    steps, stacked = jax.jit(lambda: jax.lax.scan(body, jnp.int32(0), None, length=6)[1])()
    queue.put_many(steps, stacked)  # the steps are on the device too
    wait_for(lambda: queue.written == 6)  # only then is it known which were the last
    queue.put_many(range(6, 8), stacked[:2])
    assert queue.close() == 0
    rows = np.array(records(ring), np.uint64)
    assert rows[:, 0].tolist() == list(range(8))
    assert rows[:, 2].view(np.float64).tolist() == [0, 1, 2, 3, 4, 5, 0, 1]
    assert rows[:, 3].tolist() == [0, 0, 0, 0, 1, 1, 0, 0]


def test_a_step_on_the_device(queue_of: Any) -> None:
    queue, ring = queue_of(SCALAR)
    one = {"loss": jnp.float32(1)}
    with pytest.warns(RuntimeWarning, match="not above the one before"):
        for step in (1, 2, 2, 3):
            queue.put(jnp.int32(step), one)
        queue.close()
    assert [r[0] for r in records(ring)] == [1, 2, 3]
    assert (queue.records, queue.written, queue.dropped) == (4, 3, 1)


def test_steps_behind_one_on_the_device_keep_their_place(queue_of: Any) -> None:
    queue, ring = queue_of(SCALAR)
    one, many = {"loss": jnp.float32(1)}, {"loss": jnp.ones(3, jnp.float32)}
    queue.put(0, one)
    queue.put(jnp.int32(1), one)
    queue.put(2, one)
    queue.put_many(jnp.arange(3, 6), many)
    queue.put_many(range(6, 9), many)
    queue.put(9, {"loss": 1.0})
    wait_for(lambda: queue.written == 10)
    queue.put(10, one)
    assert queue.close() == 0
    assert [r[0] for r in records(ring)] == list(range(11))
    assert (queue.records, queue.dropped) == (11, 0)


def test_a_step_below_one_on_the_device_is_a_counted_drop(queue_of: Any) -> None:
    queue, ring = queue_of(SCALAR)
    one, many = {"loss": jnp.float32(1)}, {"loss": jnp.ones(3, jnp.float32)}
    with pytest.warns(DroppedWarning, match="3 records had steps.* behind some") as caught:
        queue.put(slow(0.5)().astype(jnp.int32) * 0 + 10, one)
        queue.put(5, one)
        queue.put_many(range(8, 11), many)
        queue.put(11, one)
        queue.close()
    assert [r[0] for r in records(ring)] == [10, 11]
    assert (queue.records, queue.written, queue.dropped) == (6, 2, 4)
    assert "could not" not in str(caught[0].message)


def test_a_step_known_to_be_wrong_behind_one_on_the_device_is_refused(queue_of: Any) -> None:
    queue, ring = queue_of(SCALAR)
    one = {"loss": jnp.float32(1)}
    queue.put(3, one)
    wait_for(lambda: queue.written == 1)
    queue.put(slow(0.5)().astype(jnp.int32) * 0 + 10, one)
    with pytest.raises(StepError, match="not above 3"):
        queue.put(2, one)
    queue.put(12, one)
    for step in (12, 11, 3, -1, 1 << 64):
        with pytest.raises(StepError, match="not above 12" if 0 <= step < 100 else "want 0"):
            queue.put(step, one)
    assert queue.close() == 0
    assert [r[0] for r in records(ring)] == [3, 10, 12]
    assert (queue.records, queue.dropped) == (3, 0)


@pytest.mark.filterwarnings("ignore::usp.Warning")
@pytest.mark.parametrize("seed", range(8))
def test_any_order_of_steps_here_and_on_the_device(queue_of: Any, seed: int) -> None:
    draw = random.Random(seed)
    queue, ring = queue_of(SCALAR)
    one = {"loss": jnp.float32(1)}
    put = refused = 0
    want: list[int] = []
    for _ in range(200):
        step = max(0, (want[-1] if want else 0) + draw.randint(-3, 6))
        device = draw.random() < 0.2
        try:
            queue.put(jnp.int32(step) if device else step, one)
            put += 1
            if not want or step > want[-1]:
                want.append(step)
        except StepError:
            refused += 1
            assert not device
            assert step <= want[-1]
        if draw.random() < 0.1:
            wait_for(lambda: queue.pending() == 0)
    assert queue.close() == 0
    got = [r[0] for r in records(ring)]
    assert got == want
    assert (queue.records, queue.written, queue.dropped) == (put, len(got), put - len(got))
    assert put > 100 and refused + queue.dropped > 10


@pytest.mark.filterwarnings("ignore::usp.Warning")
def test_threads_with_steps_here_and_on_the_device(queue_of: Any) -> None:
    queue, ring = queue_of(SCALAR)
    one = {"loss": jnp.float32(1)}
    on_device = [jnp.int32(step) for step in range(0, 600, 7)]
    counts: list[int] = []

    def run(steps: Any) -> None:
        put = 0
        for step in steps:
            try:
                queue.put(step, one)
                put += 1
            except StepError:
                pass
        counts.append(put)

    threads = [threading.Thread(target=run, args=(s,)) for s in (range(600), on_device, range(3, 600, 2))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert queue.close() == 0
    got = [r[0] for r in records(ring)]
    assert got == sorted(set(got)), "not increasing"
    assert (queue.records, queue.written, queue.dropped) == (sum(counts), len(got), sum(counts) - len(got))


# Donated buffers


def test_a_buffer_donated_after_the_call_is_a_counted_drop_and_one_warning(queue_of: Any) -> None:
    queue, ring = queue_of(SCALAR)
    donate = jax.jit(lambda x: x + 1, donate_argnums=0)
    donate(jnp.float32(0))
    begin = slow(0.3)
    for step in (1, 2):
        x = begin()
        queue.put(step, {"loss": x})
        donate(x)
        assert x.is_deleted()
    wait_for(lambda: queue.dropped == 2)
    with pytest.warns(RuntimeWarning, match="donated or deleted") as caught:
        queue.put(3, {"loss": jnp.float32(3)})
    assert len(caught) == 1
    assert queue.close() == 0
    assert [r[0] for r in records(ring)] == [3]
    assert (queue.records, queue.written, queue.dropped) == (3, 1, 2)


@pytest.mark.parametrize("many", [False, True])
def test_a_buffer_that_is_gone_at_the_call_is_an_error(queue_of: Any, many: bool) -> None:
    queue, _ = queue_of(SCALAR)
    for _ in range(2):  # the second time the field was seen before
        x = jnp.ones(2 if many else (), jnp.float32)
        x.delete()
        with pytest.raises(FieldError, match=r"'loss'.*donated or deleted"):
            (queue.put_many if many else queue.put)([1, 2] if many else 1, {"loss": x})
        queue.put(queue.records, {"loss": jnp.float32(1)})
    assert queue.records == 2


def test_a_packed_array_that_is_gone_at_the_call_is_an_error(queue_of: Any) -> None:
    queue, ring = queue_of(SCALAR)
    for _ in range(2):
        packed = jnp.array(pack(ring.schema, {"loss": 1.0}))
        queue.put(queue.records, packed)
        packed = jnp.array(packed)
        packed.delete()
        with pytest.raises(FieldError, match=r"packed array.*donated or deleted"):
            queue.put(queue.records, packed)
    assert queue.records == 2


def test_a_buffer_deleted_before_it_is_looked_at_is_a_counted_drop(queue_of: Any) -> None:
    """jaxlib crashes when a deleted array is asked whether it is ready."""
    queue, ring = queue_of(SCALAR)
    one = [jnp.float32(k) for k in range(4)]
    queue.put(1, {"loss": slow(0.3)()})  # nobody looks at those behind it
    for k, x in enumerate(one):
        queue.put(2 + k, {"loss": x})
    for x in one[:3]:
        x.delete()
    with pytest.warns(RuntimeWarning, match="donated or deleted"):
        wait_for(lambda: queue.dropped == 3)
        queue.close()
    assert [r[0] for r in records(ring)] == [1, 5]


def test_emitting_does_not_keep_a_buffer_from_being_donated(queue_of: Any) -> None:
    queue, _ = queue_of([Field("a", "metric", "f32", 1000)])
    donate = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = donate(jnp.zeros(1000, jnp.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(2000):
            queue.put(step, {"a": x})
            if step % 3:
                time.sleep(0)  # the thread may be anywhere
            x = donate(x)  # must work whether or not the thread reads it at this moment
        assert float(x[0]) == 2001
        queue.close()
    assert queue.records == 2000 == queue.written + queue.dropped


# Refusals


def test_what_does_not_fit_is_an_error_and_not_queued(queue_of: Any) -> None:
    queue, _ = queue_of([Field("a", "metric", "f32", 2), Field("b", "flag", "u64", 1)])
    a, b = jnp.ones(2, jnp.float32), jnp.uint32(1)
    queue.put(0, {"a": a, "b": b})
    for values, match in [
        ({"a": a}, "no value for field 'b'"),
        ({"a": a, "b": b, "c": b}, "field 'c' not declared"),
        ({"a": a, "c": b}, "no value for field 'b'"),
        ({"a": jnp.ones(3, jnp.float32), "b": b}, r"'a'.*3 elements: want 2"),
        ({"a": a, "b": jnp.int32(1)}, "'b'.*int32 in a field of u64"),
        ({"a": a, "b": jnp.float32(1)}, "'b'.*float32 in a field of u64"),
        ({"a": jnp.ones(2, jnp.complex64), "b": b}, "'a'.*complex64"),
        ({"a": object(), "b": b}, "'a'.*object"),
        ({"a": [1.0, a], "b": b}, "'a'"),
        (jnp.zeros(5, jnp.uint32), r"packed values.*want uint32 \(6,\)"),
        (jnp.zeros(6, jnp.int32), "packed values.*int32"),
        (np.zeros(7, np.uint32), "packed values"),
        ([1, 2], "values of type list"),
        (None, "values of type NoneType"),
    ]:
        with pytest.raises(FieldError, match=match):
            queue.put(1, values)
    with jax.enable_x64(True), pytest.raises(FieldError, match=r"'a'.*float64 in a field of f32"):
        queue.put(1, {"a": jnp.ones(2), "b": b})
    for values, match in [
        ({"a": jnp.ones((2, 2), jnp.float32), "b": jnp.ones(3, jnp.uint32)}, "'b'.*leading axis of 2"),
        ({"a": jnp.ones(2, jnp.float32), "b": jnp.ones(2, jnp.uint32)}, "'a'.*1 elements: want 2"),
        (jnp.zeros((3, 6), jnp.uint32), "packed values"),
    ]:
        with pytest.raises(FieldError, match=match):
            queue.put_many([1, 2], values)
    assert queue.records == 1


def test_steps_must_increase(queue_of: Any) -> None:
    queue, ring = queue_of(SCALAR)
    one, two = {"loss": jnp.float32(1)}, {"loss": jnp.ones(2, jnp.float32)}
    queue.put(5, one)
    for step in (5, 4, -1, 1 << 64, 1.5, "6", None):
        with pytest.raises(StepError):
            queue.put(step, one)
    for steps in ([5, 6], [8, 7], [7, 7], [-1, 9], [7.0, 8.0]):
        with pytest.raises(StepError):
            queue.put_many(steps, two)
    queue.put(np.int64(6), one)
    queue.put_many(np.array([7, 9]), two)
    queue.close()
    assert [r[0] for r in records(ring)] == [5, 6, 7, 9]


@pytest.mark.parametrize("name", ["put", "put_many"])
def test_a_traced_value_is_an_error_that_says_what_to_do(queue_of: Any, name: str) -> None:
    queue, _ = queue_of(SCALAR)
    queue.put(0, {"loss": jnp.float32(1)})
    with jax.checking_leaks():
        for values in (lambda x: {"loss": x}, lambda x: pack(queue._schema, {"loss": x})):
            with pytest.raises(FieldError, match=r"inside jit.*emit_traced.*pack\(values\)"):
                jax.jit(lambda x, v=values: getattr(queue, name)(1 if name == "put" else [1], v(x)))(jnp.float32(1))
        with pytest.raises(FieldError, match="emit_traced"):
            jax.jit(lambda s: getattr(queue, name)(s, {"loss": 1.0}))(jnp.int32(1))
    assert queue.records == 1


def test_pack_leaks_nothing_and_traces_once(queue_of: Any) -> None:
    queue, ring = queue_of(SCALAR)
    traced = 0

    def step(x: Any) -> Any:
        nonlocal traced
        traced += 1
        return x + 1, pack(ring.schema, {"loss": x})

    jitted = jax.jit(step)
    x = jnp.float32(0)
    with jax.checking_leaks():
        for i in range(20):
            x, packed = jitted(x)
            queue.put(i, packed)
    assert traced == 1


# The end


@by_itself
def test_after_close_put_raises(queue_of: Any) -> None:
    queue, _ = queue_of(SCALAR)
    queue.put(1, {"loss": jnp.float32(1)})
    queue.close()
    queue.close()
    for call in (lambda: queue.put(2, {"loss": 1.0}), lambda: queue.put_many([2], {"loss": [1.0]})):
        with pytest.raises(ClosedError):
            call()


def test_close_does_not_wait_for_a_device_that_hangs(queue_of: Any) -> None:
    queue, ring = queue_of(SCALAR)
    queue.put(1, {"loss": jnp.float32(1)})
    wait_for(lambda: ring.position == 1)
    hung = slow(2.0)()
    queue.put(2, {"loss": hung})
    queue.put(3, {"loss": jnp.float32(3)})
    began = time.perf_counter()
    with pytest.warns(RuntimeWarning, match="2 records were not ready"):
        assert queue.close(0.2) == 2
    assert time.perf_counter() - began < 1
    assert not hung.is_ready(), "the computation was too short to show anything"
    assert (queue.records, queue.written, queue.dropped) == (3, 1, 2)
    hung.block_until_ready()
    time.sleep(0.1)
    assert ring.position == 1, "the thread wrote after it was given up"


def test_a_closed_ring_is_a_counted_drop(queue_of: Any) -> None:
    queue, ring = queue_of(SCALAR)
    queue.put(1, {"loss": slow(0.2)()})
    ring.finish(True)
    wait_for(lambda: queue.dropped == 1)
    with pytest.warns(RuntimeWarning, match="could not be written: ClosedError"):
        queue.close()


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::DeprecationWarning")
def test_the_child_of_a_fork_is_told(queue_of: Any) -> None:
    queue, ring = queue_of(SCALAR)
    queue.put(1, {"loss": jnp.float32(1)})
    value = jnp.float32(2)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            queue.forked()
            queue.put(2, {"loss": 1.0})
        except ForkedError:
            code = 42
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42
    queue.put(2, {"loss": value})
    assert queue.close() == 0
    assert [r[0] for r in records(ring)] == [1, 2]
