"""Records written from inside compiled programs: a call that XLA makes itself, without Python and its lock.

On the CPU the call goes to a C function of the extension `usp._native`, on CUDA to one that enqueues a tiny kernel
(`usp.cuda`, where that was built). Both are reached by a number, never by an address: a program that outlives its run,
in a cache or in another process, finds no ring and drops its records, counted.
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from usp._errors import Error, FieldError, RingError, StepError
from usp._pack import pack, packed_len
from usp._schema import Schema

if TYPE_CHECKING:
    import jax

    from usp._ring import Ring

TARGET = "usp_emit"
_INSTEAD = (
    "return run.pack(values) from the jitted function and call run.emit(step, packed), "
    "or run.emit_many(steps, stacked) for what lax.scan stacked"
)


class Counts(NamedTuple):
    """Records that compiled programs did not write.

    late: the step was not above the last one of this ring. repeats: another device had written the step; these are no
    drops. stale: the ring was closed, or is another process's. malformed: the call was not understood. The last two
    are of all rings of this process.
    """

    late: int = 0
    repeats: int = 0
    stale: int = 0
    malformed: int = 0


_lock = threading.Lock()
_traced = threading.Event()  # programs that write records may be on their way
_outcome: dict[str, str] = {}  # platform -> "" if the call is registered there, or else why it is not


def unavailable(platform: str) -> str:
    """Returns "" if programs for the platform ("cpu", "cuda") can write records, or else why not. Registers once."""
    with _lock:
        if platform not in _outcome:
            _outcome[platform] = _register(platform)
        return _outcome[platform]


def _register(platform: str) -> str:
    if platform == "cuda":
        try:
            from usp.cuda import register
        except ImportError as e:
            return f"the CUDA part is not built ({e}): make -C python cuda, where nvcc is"
        return register(TARGET)
    if platform != "cpu":
        return f"there is no such call for {platform}"
    try:
        import usp._native as _native
    except ImportError as e:
        return f"the extension usp._native is not here ({e})"
    import jax

    jax.devices(
        "cpu"
    )  # a registration before the backend is there would be tried, and fail, in the middle of something
    try:
        jax.ffi.register_ffi_target(TARGET, _native.xla_handler, platform="cpu")
    except Exception as e:  # of jaxlib, of whatever class it is there
        ours, theirs = _native.xla_version()
        versions = f"interface {ours[0]}.{ours[1]} here, {theirs[0]}.{theirs[1]} in jaxlib"
        return f"jaxlib refused the call ({versions}): {str(e).splitlines()[0]}"
    return ""


def emit_traced(ring: Ring, schema: Schema, step: Any, values: Any) -> jax.Array:
    """Writes one record when the compiled program gets here; for use in jit, scan, while_loop, fori_loop and cond.

    step: integer scalar, returned as it is. Thread the returned one on (`step = emit_traced(step, values)`): the data
    dependence is what orders records of one program outside of loops. values: a mapping of exactly the schema's
    fields, or what `pack` returned. The record's time is the clock's at that moment.

    jax dispatches a program with the call at its top, in scan or in cond as quickly as one without it; to wait for such
    calls wait for a result of the program. With the call in while_loop or within another jitted function it goes by way
    of Python, and jax.effects_barrier() waits for it. The end of a run waits for both.

    A step that is not above the last one is dropped and counted, as is a record of a program that outlives its run:
    jit a function anew for each run, for instance by passing the run as a static argument.
    Gradients do not flow through it. Under vmap it raises, since there is one record for each step: call it outside, or
    record reduced values; the same under jax.checkpoint, where jax refuses effects.

    In a program for several devices each makes the call, and the first to reach a step writes it. Within shard_map and
    pmap make the values equal on all devices first, e.g. by psum. A jitted function of sharded arrays needs its mesh in
    the context (jax.set_mesh); without, XLA refuses to compile it ("Side-effect HLO must have sharding").

    Raises Error where the backend has no such call, FieldError and StepError for what does not fit, all when tracing.
    """
    import jax
    import jax.numpy as jnp

    _traced.set()
    platform = _platform()
    why = unavailable(platform)
    if why:
        raise Error(f"emit_traced on {platform}: {why}. Instead, {_INSTEAD}")
    if platform == "cuda":
        _attach(ring)
    packed = pack(schema, values) if isinstance(values, Mapping) else _checked(schema, values)
    try:
        given = jnp.asarray(step)
    except OverflowError:
        raise StepError(f"step {step}: larger than jax's integers; enable x64") from None
    if given.shape != () or given.dtype.kind not in "iu":
        raise StepError(f"step: {given.dtype} of shape {given.shape}: want an integer scalar")
    at = given
    if given.dtype.itemsize < 4:
        at = given.astype(jnp.int32 if given.dtype.kind == "i" else jnp.uint32)
    attributes = _attributes(ring)

    primitive = _primitive() if platform == "cpu" else None

    def call(at: jax.Array, packed: jax.Array) -> jax.Array:
        if primitive is not None:
            return primitive.bind(at, packed, known=True, **attributes)
        shape = jax.ShapeDtypeStruct((), at.dtype)
        return jax.ffi.ffi_call(TARGET, shape, has_side_effect=True)(at, packed, **attributes)

    try:
        out = _on_mesh(call, at, packed)
    except NotImplementedError as e:
        if "vmap" not in str(e):
            raise
        raise Error(f"emit_traced under vmap: a step has one record. Call it outside of vmap; or {_INSTEAD}") from None
    return out if out.dtype == given.dtype else out.astype(given.dtype)


@functools.cache
def _primitive() -> Any:
    """The call as an operation of jax; None where this jax cannot have it, and jax.ffi.ffi_call serves.

    jax calls a program with effects by way of Python, which takes some 50 us more than its quick way. So the effect is
    there while jax transforms the program, which keeps loops that nobody reads and refuses vmap and checkpoint; the
    last pruning before the program is compiled takes it away. XLA is told of it all the same, and drops nothing.
    """
    try:
        import jax
        import numpy as np
        from jax._src import dispatch
        from jax._src.ffi import _FfiEffect
        from jax._src.interpreters.partial_eval import _dce_jaxpr
        from jax.extend.core import Primitive
        from jax.interpreters import batching, mlir, partial_eval

        primitive = Primitive(TARGET)
        forget = _dce_jaxpr.evict_weakref
        pruned: list[Any] = []  # bodies whose effect was taken away; jax must not find them so when it prunes elsewhere
        lower = jax.ffi.ffi_lowering(TARGET, has_side_effect=True)

        def abstract(at: Any, packed: Any, *, known: bool, **_: int) -> Any:
            return at.update(weak_type=False), {_FfiEffect} if known else set()

        def lowering(ctx: Any, at: Any, packed: Any, *, known: bool, **attributes: int) -> Any:
            while pruned:
                forget(pruned.pop())
            return lower(ctx, at, packed, **{name: np.int32(value) for name, value in attributes.items()})

        def batch(*_: Any, **__: Any) -> Any:
            raise NotImplementedError(f"emit_traced under vmap: a step has one record. Call it outside; or {_INSTEAD}")

        def prune(used: list[bool], eqn: Any) -> Any:
            bodies = _last_pruning(sys._getframe(1))
            if bodies is not None:
                pruned.extend(bodies)
                eqn = eqn.replace(params={**eqn.params, "known": False}, effects=frozenset())
            return [True] * len(eqn.invars), eqn

        dispatch.simple_impl(primitive)
        primitive.def_effectful_abstract_eval(abstract)
        mlir.register_lowering(primitive, lowering)
        batching.primitive_batchers[primitive] = batch
        partial_eval.dce_rules[primitive] = prune
    except (ImportError, AttributeError):  # another version of jax
        return None
    return primitive


# Who calls whom when jax prunes the outermost program before it is compiled, and what it goes into then. A jitted function
# in another is not among it: one that neither takes nor gives anything is dropped there, if it has no effect. From a
# loop of unknown length, and when jax differentiates, the chain is another one.
_PRUNING = ("dce_jaxpr_consts", "prune_unused_inputs")
_INTO = ("_scan_dce_rule", "_cond_dce_rule")


def _last_pruning(frame: Any) -> list[Any] | None:
    """The bodies of loops that an equation is in, innermost first, if nothing will prune or transform it any more; None
    if something may. In doubt that: the call is slower, and made."""
    bodies = []
    while _named(frame, "_dce_jaxpr") and _named(frame.f_back, "dce_jaxpr"):
        bodies.append(frame.f_locals["jaxpr"])
        frame = frame.f_back.f_back
        if not any(_named(frame, name) for name in _INTO):
            break
        frame = frame.f_back
    for name in _PRUNING:
        if not _named(frame, name):
            return None
        frame, module = frame.f_back, frame.f_globals.get("__name__", "")
    return bodies[:-1] if bodies and module == "jax._src.interpreters.pxla" else None


def _named(frame: Any, name: str) -> bool:
    return frame is not None and frame.f_code.co_name == name


def _attach(ring: Ring) -> None:
    from usp.cuda import attach

    try:
        attach(ring)
    except RingError as e:
        raise Error(f"emit_traced on cuda: {e}. Instead, {_INSTEAD}") from None


def settle(timeout: float) -> bool:
    """Waits until the programs that write records, called before, have ended, at most timeout seconds.

    Returns whether they have. Does nothing where nothing was traced. A program that failed has ended. Of the programs
    that this thread has called none is missed; of another thread's, one whose results were all let go of may be.
    """
    if not _traced.is_set():
        return True
    deadline = time.monotonic() + timeout
    if not _ended([*_tokens(), *_live()], timeout):
        return False
    return _ended(_markers(), deadline - time.monotonic())


def _ended(pending: list[Any], timeout: float) -> bool:
    """Whether all that is pending is there within timeout seconds, or will never be."""
    ended = threading.Event()

    def wait() -> None:
        for one in pending:
            try:
                one.block_until_ready()
            except Exception:  # of a program that failed: its caller hears of it; of an array that was donated
                pass
        ended.set()

    try:
        # A thread of its own: there is no way to give up waiting for a device.
        threading.Thread(target=wait, name="usp-settle", daemon=True).start()
    except RuntimeError:  # the interpreter is going down
        return False
    return ended.wait(timeout)


def _live() -> list[Any]:
    """Arrays of the CPU, which are there when the program that makes them has ended; of all threads."""
    import jax

    try:
        return jax.live_arrays("cpu")
    except Exception:  # the backend is gone
        return []


def _markers() -> list[Any]:
    """A result of a program on each device: there after all that this thread has called before.

    XLA runs what one thread calls in order. It is for programs without effects whose results nobody kept, of which no
    token and no array is left. Asked for last, since a device with too much before it makes the call itself wait.
    """
    import jax
    import jax.numpy as jnp

    markers = []
    try:
        for device in jax.local_devices(backend="cpu"):
            with jax.default_device(device):
                markers.append(jax.jit(lambda: jnp.zeros(()))())
    except Exception:  # the backend is gone, or a program is being traced
        pass
    return markers


def _tokens() -> list[Any]:
    """What jax.effects_barrier would wait for: of each device the token of the last program with effects.

    The barrier itself knows no timeout, and its tokens only the thread that called the programs.
    """
    try:
        from jax._src.dispatch import runtime_tokens

        return list(runtime_tokens.output_runtime_tokens.values())
    except (ImportError, AttributeError):  # another version of jax: wait here, as long as it takes
        import jax

        jax.effects_barrier()
        return []


def release(ring: Ring, timeout: float = 10.0) -> str:
    """Before a ring is finished: takes it back from a device that writes it. Returns "" or why it did not give it back;
    the ring must then stay mapped. Nothing to do, and "", everywhere else."""
    import sys

    cuda = sys.modules.get("usp.cuda")
    return cuda.detach(ring, timeout) if cuda is not None and ring.native else ""


def _on_mesh(call: Any, at: jax.Array, packed: jax.Array) -> jax.Array:
    """Makes the call, with whole operands, on each device of the mesh that the program is traced for, if known."""
    import jax

    mesh = jax.sharding.get_abstract_mesh()
    kinds = set(mesh.axis_types)
    whole = jax.sharding.PartitionSpec()
    if not kinds - {jax.sharding.AxisType.Manual}:
        return call(at, packed)
    if jax.sharding.AxisType.Explicit in kinds:
        at, packed = jax.sharding.reshard(at, whole), jax.sharding.reshard(packed, whole)
    return jax.shard_map(call, in_specs=(whole, whole), out_specs=whole, check_vma=False)(at, packed)


def _attributes(ring: Ring) -> dict[str, Any]:
    import jax
    import numpy as np

    return {"handle": np.int32(ring.handle()), "shared": np.int32(jax.local_device_count() > 1)}


def _checked(schema: Schema, packed: Any) -> Any:
    want = (packed_len(schema),)
    shape, dtype = getattr(packed, "shape", None), getattr(packed, "dtype", None)
    if shape != want or dtype != "uint32":
        raise FieldError(f"packed values: {dtype} of shape {shape}: want uint32 {want}, what pack() returns")
    return packed


def _platform() -> str:
    """Where a program traced now will run, as far as can be said."""
    import jax

    device = jax.config.jax_default_device
    if isinstance(device, str):
        platform = device
    else:
        platform = device.platform if device is not None else jax.default_backend()
    return "cuda" if platform in ("gpu", "cuda") else platform


def counts(ring: Ring) -> Counts:
    """Returns what compiled programs did not write so far; all zero without the extension."""
    if not ring.native:
        return Counts()
    from usp import _native

    try:
        native = Counts(*_native.xla_counts(ring.handle()))
    except AttributeError:
        native = Counts()
    return native._replace(late=native.late + ring.late)
