"""Programs that write records and that Python calls for each step: as quick as without, and no record is lost by it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from devicehelp import make_ring, on_devices, records

from usp._ring import Ring, native_available
from usp._schema import Field

jax = pytest.importorskip("jax", reason="no jax here")
import jax.numpy as jnp  # noqa: E402

from usp import _xla  # noqa: E402

pytestmark = pytest.mark.skipif(bool(native_available()), reason=f"no extension usp._native: {native_available()}")

Emit = Callable[[Any, Any], Any]  # step, loss -> step


@pytest.fixture
def ring(ring_dir: Path) -> Iterator[Ring]:
    made = make_ring(ring_dir, [Field("loss", "metric", "f32", 1)], "run", 1 << 16, native=True)
    yield made
    made.close()


@pytest.fixture
def emit(ring: Ring) -> Emit:
    return lambda step, loss: _xla.emit_traced(ring, ring.schema, step, {"loss": loss})


def steps_of(ring: Ring) -> list[int]:
    return [r[0] for r in records(ring)]


def slow(x: Any) -> Any:
    """Some tenths of a second, in a thread of XLA's own."""
    return jax.lax.fori_loop(0, 400, lambda _, y: jnp.tanh(y @ y), x)


def looped(emit: Emit | None, s: Any, x: Any) -> tuple[Any, Any]:
    """Four steps in a scan, of a scan of two each."""

    def step(s: Any, _: Any) -> tuple[Any, None]:
        return (emit(s, x) if emit is not None else s) + 1, None

    def two(s: Any, _: Any) -> tuple[Any, None]:
        return jax.lax.scan(step, s, length=2)[0], None

    return jax.lax.scan(two, s, length=2)[0], x * 2


KINDS: dict[str, tuple[int, Callable[[Emit | None, Any, Any], tuple[Any, Any]]]] = {  # steps of a call, the program
    "a call": (1, lambda emit, s, x: ((emit(s, x) if emit is not None else s) + 1, x * 2)),
    "scans": (4, looped),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_from_python_costs_what_one_without_costs(ring: Ring, emit: Emit, kind: str) -> None:
    """Through Python it would be some nine times as much. Minima of alternated runs; goes on until a quiet moment."""
    steps, body = KINDS[kind]
    programs = {
        False: jax.jit(lambda s, x: body(None, s, x)),
        True: jax.jit(lambda s, x: body(emit, s, x)),
    }
    best, turns, many, s = {False: 1.0, True: 1.0}, 0, 200, 0
    while turns < 4 or (best[True] > 2 * best[False] and turns < 40):
        for k, f in programs.items():
            carry = jax.block_until_ready(f(s, jnp.float32(1)))
            began = time.perf_counter()
            for _ in range(many):
                carry = jax.block_until_ready(f(*carry))
            best[k] = min(best[k], (time.perf_counter() - began) / many)
        s, turns = int(carry[0]), turns + 1
    assert ring.position == turns * (many + 1) * steps
    assert best[True] <= 2 * best[False], f"{best[True] * 1e6:.1f} us, {best[False] * 1e6:.1f} without"


def test_settle_waits_for_what_nobody_kept(ring: Ring, emit: Emit) -> None:
    def step(s: Any, x: Any) -> Any:
        emit(s, slow(x).sum())
        return s + 1

    f, x = jax.jit(step), jnp.ones((200, 200))
    f(0, x).block_until_ready()
    began = time.perf_counter()
    for s in range(1, 6):
        f(s, x)
    assert ring.position < 6, "the programs were over before anything could wait for them"
    assert not _xla.settle(0.001)
    gave_up = time.perf_counter() - began
    assert _xla.settle(60)
    assert steps_of(ring) == list(range(6))
    assert gave_up < time.perf_counter() - began


def test_settle_waits_for_what_another_thread_called(ring: Ring, emit: Emit) -> None:
    f, x, kept = jax.jit(lambda s, x: emit(s, slow(x).sum())), jnp.ones((200, 200)), []
    f(0, x).block_until_ready()
    thread = threading.Thread(target=lambda: kept.extend(f(s, x) for s in range(1, 4)))
    thread.start()
    thread.join()
    assert ring.position < 4, "the programs were over before anything could wait for them"
    assert _xla.settle(60)
    assert steps_of(ring) == list(range(4))


def test_a_function_that_ran_alone_is_whole_within_others(ring: Ring, emit: Emit) -> None:
    """jax keeps what it traced: what it was traced for first must not decide what becomes of it elsewhere."""

    @jax.jit
    def inner(s: Any) -> Any:
        emit(s, 0.5)
        return s + 1

    @jax.jit
    def constant() -> Any:
        emit(100, 0.5)
        return 1

    inner(0).block_until_ready()
    jax.jit(lambda x: (inner(1), x)[1])(3.0)  # its result is of no use to anybody
    jax.jit(lambda x: jax.lax.fori_loop(2, 5, lambda i, x: (inner(i), x)[1], x))(3.0)
    jax.jit(lambda x: (jax.lax.scan(lambda i, _: (inner(i), None), 5, length=3), x)[1])(3.0)
    jax.jit(lambda x: (constant(), x)[1])(3.0)
    jax.effects_barrier()
    assert _xla.settle(10)
    assert steps_of(ring) == [*range(8), 100]
    with pytest.raises(NotImplementedError, match="checkpoint"):
        jax.grad(jax.checkpoint(lambda x: inner(200) * x))(1.0)
    with pytest.raises(NotImplementedError, match=r"emit_traced under vmap.*emit_many"):
        jax.vmap(inner)(jnp.arange(3))
    assert ring.position == 9


def test_a_loop_that_ran_alone_is_whole_within_others(ring: Ring, emit: Emit) -> None:
    """jax keeps what it pruned: a body without its effect, found there again, would be dropped where nobody reads it."""

    @jax.jit
    def alone(s: Any) -> Any:
        return jax.lax.scan(lambda s, _: (emit(s, 0.5) + 1, None), s, length=2)[0]

    @jax.jit
    def constant() -> None:
        jax.lax.scan(lambda s, _: (emit(s, 0.5) + 1, None), 100, length=2)

    @jax.jit
    def either(s: Any) -> Any:
        return jax.lax.cond(s % 2 == 0, lambda s: emit(s, 0.5), lambda s: emit(s, 1.5), s)

    alone(0).block_until_ready()
    constant()
    either(102).block_until_ready()
    either(103).block_until_ready()
    assert _xla.settle(10)
    assert steps_of(ring) == [0, 1, *range(100, 104)]
    for k, f in enumerate((
        lambda s: (alone(s), s)[1],
        lambda s: jax.lax.fori_loop(0, 1, lambda _, s: (alone(s), s)[1], s),
        lambda s: (jax.lax.scan(lambda s, _: (alone(s), None), s, length=1), s)[1],
        lambda s: (either(s), either(s + 1), s)[2],
        lambda s: jax.grad(lambda x: (alone(s), x * x)[1])(2.0),
        lambda s: jax.vjp(lambda x: (alone(s), x * x)[1], 2.0)[1](1.0),
    )):  # fmt: skip
        jax.block_until_ready(jax.jit(f)(200 + 2 * k))
        jax.effects_barrier()
        assert _xla.settle(10)
        assert steps_of(ring)[-2:] == [200 + 2 * k, 201 + 2 * k], f"program {k}"
    jax.jit(lambda x: (constant(), x)[1])(3.0)
    jax.effects_barrier()
    assert _xla.settle(10)
    assert _xla.counts(ring).late == 2, "the steps of the constant were there already"
    with pytest.raises(NotImplementedError, match="checkpoint"):
        jax.grad(jax.checkpoint(lambda x: alone(200) * x))(1.0)
    with pytest.raises(NotImplementedError, match=r"emit_traced under vmap.*emit_many"):
        jax.vmap(alone)(jnp.arange(3))


@pytest.mark.parametrize("first", [True, False], ids=["ran alone first", "differentiated first"])
def test_gradients_write_each_record_once(ring: Ring, emit: Emit, first: bool) -> None:
    @jax.jit
    def loss(x: Any, s: Any) -> Any:
        y = jnp.sin(x) * x
        emit(s, y)
        return y

    s = 0
    if first:
        loss(1.0, s)
        s += 1
    for f in (
        jax.jit(jax.value_and_grad(loss)), jax.value_and_grad(loss), jax.jit(jax.grad(loss)),
        lambda x, s: jax.vjp(lambda x: loss(x, s), x)[1](1.0),
        lambda x, s: jax.linearize(lambda x: loss(x, s), x)[1](1.0),
        jax.jit(lambda x, s: jax.grad(loss)(x, s)), loss,
    ):  # fmt: skip
        for _ in range(2):
            jax.block_until_ready(f(1.0, s))
            s += 1
    assert _xla.settle(10)
    assert steps_of(ring) == list(range(s))
    assert _xla.counts(ring)[:2] == (0, 0)


def test_all_calls_of_one_program_are_made(ring: Ring, emit: Emit) -> None:
    """Some at its top, whose effect jax is not told of, and some in a loop, whose effect it is."""

    def f(s: Any) -> Any:
        s = emit(s, 1.0) + 1
        s = jax.lax.scan(lambda s, _: (emit(s, 2.0) + 1, None), s, length=3)[0]
        emit(s, 3.0)
        return s + 1

    assert jax.jit(f)(jax.jit(f)(0)) == 10
    assert _xla.settle(10)
    assert steps_of(ring) == list(range(10))


def test_without_an_operation_of_its_own(ring: Ring, emit: Emit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where jax has not what it takes, jax's own call serves."""
    monkeypatch.setattr(_xla, "_primitive", lambda: None)
    assert jax.jit(lambda s: emit(s, 1.0))(3) == 3
    jax.effects_barrier()
    assert steps_of(ring) == [3]


def test_each_of_several_devices(ring_dir: Path) -> None:
    program = """
        import sys
        from pathlib import Path
        import jax, jax.numpy as jnp
        from devicehelp import make_ring, records
        from usp._schema import Field
        from usp._xla import emit_traced, settle
        ring = make_ring(Path(sys.argv[1]), [Field("loss", "metric", "f32", 1)])
        def step(s, x):
            x = jax.lax.fori_loop(0, 200, lambda _, y: jnp.tanh(y @ y), x)
            emit_traced(ring, ring.schema, s, {"loss": x.sum()})
            return s + 1
        f, at = jax.jit(step), 0
        for device in jax.devices():
            x = jax.device_put(jnp.ones((200, 200)), device)
            f(at, x).block_until_ready()
            f(at + 1, x)
            assert settle(60)
            at += 2
            assert [r[0] for r in records(ring)] == list(range(at)), records(ring)
        assert at == 6
        on_all = jax.pmap(lambda s, x: step(s, x), axis_name="i")
        x, steps = jnp.ones((3, 200, 200)), [jnp.full(3, at + k) for k in range(12)]
        jax.block_until_ready(on_all(steps[0], x))
        for s in steps[1:]:
            on_all(s, x)  # in threads of XLA's own for each device
        assert settle(60)
        assert [r[0] for r in records(ring)] == list(range(18)), records(ring)
        ring.close()
        print("fine")
    """
    on_devices(3, program, ring_dir)
