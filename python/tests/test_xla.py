"""Records written from inside compiled programs: exact bits, order, counts, one compilation, and what it costs."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from devicehelp import F32_BITS, F64_BITS, make_ring, on_devices, records, widened

from usp._errors import Error, FieldError, StepError
from usp._ring import Ring, native_available
from usp._schema import Field

jax = pytest.importorskip("jax", reason="no jax here")
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from usp import _xla  # noqa: E402
from usp._pack import pack  # noqa: E402

pytestmark = pytest.mark.skipif(bool(native_available()), reason=f"no extension usp._native: {native_available()}")

SCALAR = [Field("loss", "metric", "f32", 1)]


@pytest.fixture
def ring_of(ring_dir: Path) -> Iterator[Callable[..., Ring]]:
    made: list[Ring] = []

    def make(fields: list[Field] | None = None, slots: int = 4096) -> Ring:
        made.append(make_ring(ring_dir, fields or SCALAR, f"run{len(made)}", slots, native=True))
        return made[-1]

    yield make
    for ring in made:
        ring.close()


def emit(ring: Ring, step: Any, values: Any) -> Any:
    return _xla.emit_traced(ring, ring.schema, step, values)


def values_of(ring: Ring) -> list[float]:
    return np.array([r[2] for r in records(ring)], np.uint64).view(np.float64).tolist()


def steps_of(ring: Ring) -> list[int]:
    return [r[0] for r in records(ring)]


@pytest.mark.parametrize("x64", [True, False], ids=["x64", "x32"])
def test_every_bit_arrives(ring_of: Any, x64: bool) -> None:
    fields = [
        Field("small", "metric", "f32", len(F32_BITS)),
        Field("n", "metric", "i64", 2),
        Field("f", "flag", "u64", 2),
    ]
    wide32 = [widened(b, 8, 23) for b in F32_BITS]
    want = [*wide32, 2**64 - 1, 7, 1, 0]
    values = {
        "small": np.array(F32_BITS, np.uint32).view(np.float32),
        "n": np.array([-1, 7], np.int32),
        "f": np.array([True, False]),
    }
    if x64:
        fields.append(Field("rho", "digest", "f64", len(F64_BITS)))
        values["rho"] = np.array(F64_BITS, np.uint64).view(np.float64)
        want += F64_BITS
    with jax.enable_x64(x64):
        ring = ring_of(fields)
        step = jax.jit(lambda s, v: emit(ring, s, v))
        assert step(3, values) == 3
        # In a loop, where XLA may keep values in registers and fuse what it likes.
        loop = jax.jit(lambda v: jax.lax.fori_loop(4, 10, lambda i, w: (emit(ring, i, w), w)[1], v))
        jax.block_until_ready(loop(jax.tree.map(jnp.asarray, values)))
    rows = records(ring)
    assert [r[0] for r in rows] == list(range(3, 10))
    assert all(list(r[2:]) == want for r in rows)


@pytest.mark.parametrize("length", [1, 510, 511, 3000])
def test_records_of_any_length(ring_of: Any, length: int) -> None:
    ring = ring_of([Field("a", "metric", "f32", length)], 16)
    jax.jit(lambda x: emit(ring, 1, {"a": x}))(jnp.arange(length, dtype=jnp.float32)).block_until_ready()
    assert np.array(records(ring)[0][2:], np.uint64).view(np.float64).tolist() == list(range(length))


def test_the_time_is_that_of_the_write(ring_of: Any) -> None:
    ring = ring_of()
    before = time.time_ns()
    loop = jax.jit(lambda: jax.lax.scan(lambda s, _: (emit(ring, s, {"loss": 1.0}) + 1, None), 0, None, length=200))
    jax.block_until_ready(loop())
    times = [r[1] for r in records(ring)]
    assert before <= times[0]
    assert times == sorted(times)
    assert times[-1] <= time.time_ns()


def test_scan_while_fori_and_cond(ring_of: Any) -> None:
    ring = ring_of()

    def scan(s: Any) -> Any:
        return jax.lax.scan(lambda s, x: (emit(ring, s, {"loss": x}) + 1, None), s, jnp.arange(5.0, dtype=jnp.float32))[
            0
        ]

    def loop(s: Any) -> Any:
        return jax.lax.while_loop(lambda s: s < 10, lambda s: emit(ring, s, {"loss": s.astype(jnp.float32)}) + 1, s)

    def some(s: Any) -> Any:
        def body(i: Any, s: Any) -> Any:
            return (
                jax.lax.cond(i % 2 == 0, lambda s: emit(ring, s, {"loss": s.astype(jnp.float32)}), lambda s: s, s) + 1
            )

        return jax.lax.fori_loop(0, 6, body, s)

    assert jax.jit(lambda s: some(loop(scan(s))))(0) == 16
    assert steps_of(ring) == [*range(10), 10, 12, 14]
    assert values_of(ring) == [float(s) for s in steps_of(ring)]


def test_a_call_whose_result_nobody_uses_is_made(ring_of: Any) -> None:
    ring = ring_of()

    def f(x: Any) -> Any:
        emit(ring, 1, {"loss": x})
        return x + 1

    jax.jit(f)(jnp.float32(1)).block_until_ready()
    jax.jit(lambda s: jax.lax.fori_loop(2, 5, lambda i, s: (emit(ring, i, {"loss": 0.5}), s)[1], s))(0)
    jax.effects_barrier()
    assert steps_of(ring) == [1, 2, 3, 4]


def test_the_returned_step_orders_calls_of_one_program(ring_of: Any) -> None:
    ring = ring_of()

    def f(s: Any) -> Any:
        for _ in range(20):
            s = emit(ring, s, {"loss": 1.0}) + 1
        return s

    assert jax.jit(f)(0) == 20
    assert steps_of(ring) == list(range(20))


def test_without_jit_and_with_packed_values(ring_of: Any) -> None:
    ring = ring_of()
    assert emit(ring, 1, {"loss": 1.5}) == 1
    assert emit(ring, 2, pack(ring.schema, {"loss": 2.5})) == 2
    assert _xla.settle(10)
    assert values_of(ring) == [1.5, 2.5]


@pytest.mark.parametrize("name", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_step_of_any_integer_dtype(ring_of: Any, name: str) -> None:
    with jax.enable_x64(True):
        ring = ring_of()
        info = np.iinfo(name)
        f = jax.jit(lambda s: emit(ring, s, {"loss": 1.0}))
        for step in (0, 1, int(info.max)):
            out = f(np.array(step, name))
            assert (out.dtype, int(out)) == (name, step)
        assert steps_of(ring) == [0, 1, int(info.max)]
        if info.min < 0:
            f(np.array(-1, name)).block_until_ready()
            assert _xla.counts(ring).late == 1


def test_gradients_pass_by(ring_of: Any) -> None:
    ring = ring_of()

    def loss(x: Any) -> Any:
        y = x * x
        emit(ring, 1, {"loss": y})
        return y

    assert jax.jit(jax.grad(loss))(3.0) == 6
    assert _xla.settle(10)
    assert values_of(ring) == [9]


# What is not written


def test_steps_that_do_not_increase_are_counted_and_nothing_stops(ring_of: Any) -> None:
    ring = ring_of()
    f = jax.jit(lambda s: emit(ring, s, {"loss": 1.0}))
    for s in (5, 5, 4, -1, 6, 2**31 - 1, 7):
        assert f(s) == s
    assert steps_of(ring) == [5, 6, 2**31 - 1]
    assert _xla.counts(ring).late == 4


def test_records_of_compiled_programs_and_of_the_host_share_their_steps(ring_of: Any) -> None:
    ring = ring_of()
    host = ring.emitter(lambda *a: None)
    f = jax.jit(lambda s: emit(ring, s, {"loss": 1.0}))
    f(3).block_until_ready()
    with pytest.raises(StepError):
        host(3, {"loss": 1.0})
    host(4, {"loss": 1.0})
    f(4).block_until_ready()
    assert steps_of(ring) == [3, 4]
    assert _xla.counts(ring).late == 1


def test_a_program_that_outlives_its_ring_is_counted(ring_of: Any) -> None:
    first = ring_of()
    f = jax.jit(lambda s: emit(first, s, {"loss": 1.0}))
    f(1).block_until_ready()
    before = _xla.counts(first).stale
    first.finish(True)
    assert f(2) == 2
    first.close()
    second = ring_of()  # in the same place of the writers' table
    assert f(3) == 3
    assert second.position == 0
    assert _xla.counts(second).stale - before == 2
    assert _xla.counts(second).late == 0


def test_closing_while_a_program_writes(ring_of: Any) -> None:
    ring = ring_of(slots=1 << 16)
    before = _xla.counts(ring).stale
    n = 200_000
    f = jax.jit(lambda s: jax.lax.scan(lambda s, _: (emit(ring, s, {"loss": 1.0}) + 1, None), s, None, length=n)[0])
    out = f(0)
    while ring.position == 0:
        pass
    ring.finish(True)
    assert out == n
    other = ring_of()
    assert ring.position + _xla.counts(other).stale - before == n
    assert ring.position > 0


def test_threads_running_programs_on_one_ring(ring_of: Any) -> None:
    ring = ring_of(slots=1 << 16)
    n = 20_000
    f = jax.jit(lambda s: jax.lax.scan(lambda s, _: (emit(ring, s, {"loss": 1.0}) + 1, None), s, None, length=n)[0])
    f(0).block_until_ready()
    start = ring.position
    threads = [threading.Thread(target=lambda k=k: f(n + k).block_until_ready()) for k in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert ring.position - start + _xla.counts(ring).late == 3 * n
    got = steps_of(ring)
    assert got == sorted(set(got))


def test_several_rings_at_once(ring_of: Any) -> None:
    rings = [ring_of() for _ in range(3)]

    def f(s: Any) -> Any:
        for k, ring in enumerate(rings):
            emit(ring, s, {"loss": s.astype(jnp.float32) + 100 * k})
        return s + 1

    jitted, s = jax.jit(f), jnp.int32(0)
    for _ in range(10):
        s = jitted(s)
    s.block_until_ready()
    for k, ring in enumerate(rings):
        assert values_of(ring) == [100 * k + i for i in range(10)]


def test_what_does_not_fit_is_an_error_when_tracing(ring_of: Any) -> None:
    ring = ring_of([Field("a", "metric", "f32", 2), Field("b", "flag", "u64", 1)])
    a, b = jnp.ones(2, jnp.float32), jnp.uint32(1)
    for values, match in [
        ({"a": a}, "no value for field 'b'"),
        ({"a": a, "b": b, "c": b}, "'c' not declared"),
        ({"a": jnp.ones(3, jnp.float32), "b": b}, r"'a'.*3 elements: want 2"),
        ({"a": a, "b": jnp.int32(1)}, "'b'.*int32 in a field of u64"),
        ({"a": a, "b": 1.5}, "'b'.*float"),
        ({"a": a, "b": -1}, "'b'"),
        (jnp.zeros(5, jnp.uint32), "packed values"),
        (a, "packed values"),
    ]:
        with pytest.raises(FieldError, match=match):
            jax.jit(lambda s, v: emit(ring, s, v), static_argnums=())(1, values) if not isinstance(
                values, dict
            ) else jax.jit(lambda s, v=values: emit(ring, s, v))(1)
    for step in (1.5, jnp.ones(2, jnp.int32), True, 1 << 40):
        with pytest.raises(StepError):
            jax.jit(lambda s=step: emit(ring, s, {"a": a, "b": b}))()
    assert ring.position == 0


def test_vmap_and_checkpoint_are_errors(ring_of: Any) -> None:
    ring = ring_of()
    with pytest.raises(Error, match=r"under vmap.*pack\(values\).*emit_many"):
        jax.vmap(lambda s: emit(ring, s, {"loss": 1.0}))(jnp.arange(3))
    with pytest.raises(NotImplementedError, match="vmap"):
        jax.vmap(jax.jit(lambda s: emit(ring, s, {"loss": 1.0})))(jnp.arange(3))
    with pytest.raises(NotImplementedError, match="checkpoint"):
        jax.grad(jax.checkpoint(lambda x: emit(ring, 1, {"loss": x}) * x))(1.0)
    assert ring.position == 0


def test_where_there_is_no_such_call_the_error_says_what_to_do(ring_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = ring_of()
    monkeypatch.setattr(_xla, "_outcome", {})
    monkeypatch.setitem(sys.modules, "usp._native", None)
    monkeypatch.delattr("usp._native", raising=False)
    with pytest.raises(
        Error, match=r"on cpu: the extension usp._native is not here.*run.pack\(values\).*run.emit_many"
    ):
        jax.jit(lambda s: emit(ring, s, {"loss": 1.0}))(1)
    assert "no such call for tpu" in _xla.unavailable("tpu")


# Compilations, leaks, memory, cost


def test_one_compilation_no_leaks(ring_of: Any) -> None:
    ring = ring_of()
    traced = 0

    def step(s: Any, x: Any) -> Any:
        nonlocal traced
        traced += 1
        return emit(ring, s, {"loss": x}) + 1, x * 2

    jitted = jax.jit(step)
    with jax.checking_leaks():
        s, x = jnp.int32(0), jnp.float32(1)
        for _ in range(50):
            s, x = jitted(s, x)
        s.block_until_ready()
    assert traced == 1
    assert jitted._cache_size() == 1
    assert ring.position == 50
    text = jitted.lower(s, x).as_text()
    assert f"handle = {ring.handle()} : i32" in text, "the ring is known by anything but a small number"


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_memory_does_not_grow_over_a_million_steps(ring_of: Any) -> None:
    ring = ring_of(slots=1024)
    n = 250_000
    f = jax.jit(lambda s: jax.lax.scan(lambda s, _: (emit(ring, s, {"loss": 1.0}) + 1, None), s, None, length=n)[0])
    s = f(jnp.int32(0)).block_until_ready()
    gc.collect()
    before = resident()
    for _ in range(4):
        s = f(s)
    s.block_until_ready()
    assert ring.position == 5 * n
    assert resident() - before < 1 << 20


def test_cost_in_a_scan(ring_of: Any) -> None:
    """At most 0.3 us a step over the same scan without it: the difference of minima over alternated runs.

    The processor may be shared: the test goes on, up to a limit, until each has had a quiet moment.
    """
    fields = [Field("a", "metric", "f32", 4), Field("b", "metric", "f32", 1), Field("c", "flag", "u64", 1)]
    ring = ring_of(fields, 1 << 16)
    n = 100_000

    def body(with_record: bool) -> Callable[..., Any]:
        def one(carry: Any, _: Any) -> Any:
            s, x = carry
            x = x * 0.999 + jnp.sin(x) * 0.001
            if with_record:
                s = emit(ring, s, {"a": x, "b": x.sum(), "c": (x > 0).any()})
            return (s + 1, x), None

        return one

    runs = {k: jax.jit(lambda s, x, k=k: jax.lax.scan(body(k), (s, x), None, length=n)[0]) for k in (False, True)}
    s, x = jnp.int32(0), jnp.ones(4, jnp.float32)
    took: dict[bool, list[float]] = {False: [], True: []}
    per_step, turns = 1.0, 0
    while turns < 4 or (per_step > 0.3e-6 and turns < 60):
        for k, run in runs.items():
            began = time.perf_counter()
            out = jax.block_until_ready(run(s, x))
            if turns:
                took[k].append(time.perf_counter() - began)
        s, turns = out[0], turns + 1
        per_step = (min(took[True], default=1.0) - min(took[False], default=0.0)) / n
    assert ring.position == turns * n
    assert per_step <= 0.3e-6, f"{per_step * 1e9:.0f} ns a step"


def test_programs_for_several_devices_write_each_step_once(ring_dir: Path) -> None:
    program = """
        import sys
        from pathlib import Path
        import jax, jax.numpy as jnp
        from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
        from devicehelp import make_ring, records
        from usp._schema import Field
        from usp._xla import counts, emit_traced
        ring = make_ring(Path(sys.argv[1]), [Field("loss", "metric", "f32", 1)])
        def emit(s, x):
            return emit_traced(ring, ring.schema, s, {"loss": x})
        at = 0
        for kind in (AxisType.Auto, AxisType.Explicit):
            mesh = jax.make_mesh((4,), ("i",), axis_types=(kind,))
            x = jax.device_put(jnp.arange(8.0), NamedSharding(mesh, P("i")))
            with jax.set_mesh(mesh):
                whole = jax.jit(lambda s, x: emit(s, x.sum()))
                part = jax.jit(jax.shard_map(lambda s, x: emit(s, jax.lax.psum(x.sum(), "i"))[None],
                                             in_specs=(P(), P("i")), out_specs=P("i")))
                for f in (whole, part):
                    for _ in range(10):
                        f(at, x).block_until_ready()
                        at += 1
        f = jax.pmap(lambda s, x: emit(s, jax.lax.psum(x, "i")), axis_name="i")
        for _ in range(10):
            f(jnp.full(4, at), jnp.full(4, 7.0)).block_until_ready()
            at += 1
        rows = records(ring)
        assert [r[0] for r in rows] == list(range(50)), rows
        assert {r[2] for r in rows} == {0x403C000000000000}, rows  # 28.0
        assert counts(ring)[:2] == (0, 150), counts(ring)
        ring.close()
        print("fine")
    """
    on_devices(4, program, ring_dir)
