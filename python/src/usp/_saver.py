"""Saver: hands states to the recorder without making the step loop wait.

What the caller pays for is the least that keeps the state as it is now:

* Host arrays can be written to, so they are copied in the call: into shared memory if that can be done at once, else
  into memory of their own.
* Arrays of jax cannot be written to, but can be donated to the next step. On a CPU those that are ready are held by a
  view of their memory: XLA does not donate a buffer that is looked at, and computes that step into a new one. For all
  others one compiled program copies all of them on the device; it is dispatched and not waited for.

A thread waits for the device and for the recorder, and copies into the staging area without the interpreter's lock.
"""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
import time as clock
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from . import _pytree as pt
from ._errors import ClosedError, ForkedError, SnapshotError, Warning, warn

if TYPE_CHECKING:
    from ._ring import Ring

INLINE = 2 << 20  # bytes up to which a state that is at hand is copied in the call: to wake a thread costs as much
SLACK = 4096  # bytes by which the description of a state may grow; and 64 a leaf, which may come to be sharded
PROGRAMS = 3  # that copy a part of the leaves of one device, beside the one that copies all
_PAUSE, _PAUSE_MAX = 0.0005, 0.02  # s between looks at a queue or an area


def size(state: Any) -> int:
    """Bytes of shared memory that a snapshot of a state like this takes. Raises SnapshotError for what cannot be saved.

    It also has compiled what the first snapshot would otherwise wait for, which copies the state's device arrays once.
    """
    flat, structure = pt.flatten(state)
    cached = _Plan(structure, [], flat, pt.paths(state, structure))
    _prepare(flat, cached)
    return cached.plan.layout(flat)[0].size + SLACK + 64 * len(flat)


def _prepare(flat: Sequence[Any], cached: _Plan) -> None:
    for members in cached.groups.values():
        with contextlib.suppress(Exception):  # save() meets it again, and says what is wrong
            _program()([cached.data(i, flat[i]) for i in members])


def _describe(flat: Sequence[Any], paths: Sequence[str]) -> list[pt.Leaf]:
    """What is stored of each leaf. Raises SnapshotError for what a snapshot cannot hold."""
    found = []
    for leaf, path in zip(flat, paths, strict=True):
        kind = pt.kind(leaf)
        if not kind:
            raise SnapshotError(
                f"{pt.show(path)} is a {type(leaf).__module__}.{type(leaf).__qualname__}, which a snapshot does not "
                "hold: only arrays, numbers, str, bytes and None; take it out of the state, or register its type as a "
                "pytree"
            )
        if kind in ("jax", "key"):
            found.append(_device_leaf(kind, leaf, path))
        elif kind in ("numpy", "numpy.scalar"):
            dtype = pt.checked_dtype(leaf.dtype, path)
            found.append(pt.Leaf(path, kind, dtype, tuple(leaf.shape), nbytes=leaf.nbytes))
        else:
            found.append(pt.Leaf(path, kind, nbytes=len(leaf) if kind == "bytes" else 0))
    return found


def _device_leaf(kind: str, leaf: Any, path: str) -> pt.Leaf:
    impl = ""
    if kind == "key":
        import jax

        impl = str(jax.random.key_impl(leaf))
        leaf = jax.random.key_data(leaf)
    if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        raise SnapshotError(f"{pt.show(path)} is spread over several processes; gather it first")
    dtype = pt.checked_dtype(leaf.dtype, path)
    return pt.Leaf(
        path, kind, dtype, tuple(leaf.shape), weak=bool(leaf.weak_type), sharding=pt.describe(leaf.sharding), impl=impl,
        nbytes=leaf.size * pt.dtype_of(dtype, path).itemsize,
    )  # fmt: skip


class _Plan:
    """The plan of the last state, and of which leaves it is the plan: the next state is almost always like it."""

    def __init__(self, structure: Any, types: list[Any], flat: Sequence[Any], paths: Sequence[str]) -> None:
        self.structure, self.types = structure, types
        self.plan = pt.Plan(_describe(flat, paths))
        leaves = self.plan.leaves
        self.scalars = [i for i, leaf in enumerate(leaves) if not leaf.section]
        self.bytes = [i for i, leaf in enumerate(leaves) if leaf.kind in ("bytes", "numpy.scalar")]
        self.numpy = [i for i, leaf in enumerate(leaves) if leaf.kind == "numpy"]
        self.device = [i for i, leaf in enumerate(leaves) if leaf.kind in ("jax", "key")]
        # Of each device leaf: whether a view of it will do, what it can be copied with, whether it is one piece.
        self.places = {i: _place(flat[i]) for i in self.device}
        self.groups: dict[Any, list[int]] = {}
        for i, (_, group, _) in self.places.items():
            self.groups.setdefault(group, []).append(i)
        self._parts: dict[Any, list[list[int]]] = {group: [] for group in self.groups}
        self._flew: dict[Any, list[int]] = {}

    def data(self, i: int, array: Any) -> Any:
        """The array of a device leaf, also of a key."""
        return sys.modules["jax"].random.key_data(array) if self.plan.leaves[i].kind == "key" else array

    def copied(self, group: Any, flying: list[int]) -> list[int]:
        """Which leaves of a group to copy, given those that are not ready, which are among them.

        Each choice of leaves is a program that the call would wait to have compiled, and that stays; and where the step
        ends while its leaves are looked at, the choice is another one every time. So all are copied, unless the same
        ones flew the time before: then the others are not of that step, and may be many, such as frozen weights.
        """
        parts, flew = self._parts[group], self._flew.get(group)
        self._flew[group] = flying
        if flying not in parts:
            if flying != flew or len(parts) == PROGRAMS:
                return self.groups[group]
            parts.append(flying)
        return flying


def _type(leaf: Any) -> Any:
    """What a plan depends on of a leaf."""
    kind = pt.kind(leaf)
    if kind == "jax":
        return (leaf.aval, leaf.sharding)
    if kind == "key":
        return (leaf.aval, leaf.sharding, kind)
    if kind in ("numpy", "numpy.scalar"):
        return (leaf.dtype, leaf.shape, kind)
    return len(leaf) if kind == "bytes" else kind


class _Job:
    """A state on its way: for each stored leaf the pieces it consists of, as (index or None, array)."""

    def __init__(self, step: int, reason: int, plan: pt.Plan, layout: pt.Layout, text: bytes) -> None:
        self.step, self.reason = step, reason
        self.plan, self.layout, self.text = plan, layout, text
        self.pieces: dict[int, list[tuple[Any, Any]]] = {}
        self.after: Callable[[], bool] | None = None

    def fill(self, dst: memoryview) -> None:
        """Writes the container."""
        self.plan.fill(dst, self.layout, self.text, self._put)

    def fetch(self) -> None:
        """Waits for what is still on its way from the device."""
        arrays = [a for pieces in self.pieces.values() for _, a in pieces if hasattr(a, "copy_to_host_async")]
        for a in arrays:
            a.copy_to_host_async()
        for pieces in self.pieces.values():
            for k, (index, a) in enumerate(pieces):
                if hasattr(a, "copy_to_host_async"):
                    pieces[k] = (index, _asarray(a))

    def _put(self, i: int, dst: memoryview) -> None:
        pieces = self.pieces[i]
        if isinstance(pieces[0][1], bytes):
            dst[:] = pieces[0][1]
            return
        import numpy as np

        if not len(dst):
            return
        raw = np.frombuffer(dst, np.uint8)
        leaf = self.plan.leaves[i]
        if len(pieces) == 1 and pieces[0][0] is None and pieces[0][1].flags.c_contiguous:
            np.copyto(raw, pieces[0][1].reshape(-1).view(np.uint8))
            return
        dtype = pt.dtype_of(leaf.dtype, leaf.path)
        # Types that numpy has from elsewhere are copied as integers: it knows no fast way for them.
        plain = dtype if dtype.kind != "V" else np.dtype(f"u{dtype.itemsize}")
        whole = raw.view(plain).reshape(leaf.shape)
        for index, array in pieces:
            np.copyto(whole if index is None else whole[index], array.view(plain) if plain is not dtype else array)


def _asarray(a: Any) -> Any:
    import numpy as np

    return np.asarray(a)


def _nothing(dst: memoryview) -> None:
    raise AssertionError("no area takes a state of negative size")


class Saver:
    """Saves states through the staging areas of a ring. save() may be called from one thread at a time.

    Attributes, counts of states: staged, dropped (save returned False), failed (taken, and then not handed over).
    """

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.staged = self.dropped = self.failed = 0
        self._areas, self._capacity = ring.staging
        self._last: _Plan | None = None
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._pending = 0
        self._count = threading.Lock()
        self._closing = False
        self._timeout = 0.0
        self._moved = clock.monotonic()  # when the thread last got on
        self._told: set[str] = set()
        self._later: tuple[str, str] | None = None  # what the thread has to say
        self._forked = False

    def save(self, step: int, reason: int, state: Any, after: Callable[[], bool] | None = None) -> bool:
        """Hands a state over as it is now, and returns at once. False if it was dropped, which the ring counts too.

        state: a pytree of arrays and scalars. after: says whether everything that has to be in the ring before the
        state is there; asked by the thread, repeatedly. Dropped is what is larger than the staging areas, and what
        comes while each area is with the recorder or promised to a state before it.
        Raises SnapshotError for a state that cannot be saved, ClosedError.
        """
        if self._forked:
            raise ForkedError("the run belongs to the process that this one was forked from")
        if self._closing:
            raise ClosedError("the run has ended")
        self._speak()
        if not self._areas:
            return self._drop(step)  # a run that is to have no snapshots
        flat, cached = self._planned(state)
        layout, text = cached.plan.layout(flat)
        if layout.size > self._capacity:
            return self._too_large(step, layout.size)
        if self._pending >= self._areas or not self.ring.can_stage():
            return self._drop(step)
        job = _Job(step, reason, cached.plan, layout, text)
        job.after = after
        for i in cached.bytes:
            job.pieces[i] = [(None, flat[i] if isinstance(flat[i], bytes) else _scalar(flat[i]))]
        waiting = self._protect(job, cached, flat)
        at_once = self._pending == 0 and not waiting and (after is None or after())
        if at_once and (layout.size <= INLINE or not cached.device):
            for i in cached.numpy:
                job.pieces[i] = [(None, _little(flat[i]))]
            if self.ring.stage(step, reason, layout.size, job.fill):
                self.staged += 1
                return True
            self.dropped += 1
            return False
        for i in cached.numpy:
            job.pieces[i] = [(None, _little(flat[i]).copy())]
        with self._count:
            self._pending += 1
        self._jobs.put(job)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="usp-snapshot", daemon=True)
            self._thread.start()
        return True

    # In the call

    def _planned(self, state: Any) -> tuple[list[Any], _Plan]:
        flat, structure = pt.flatten(state)
        types = [_type(leaf) for leaf in flat]
        last = self._last
        if last is None or last.types != types or last.structure != structure:
            last = self._last = _Plan(structure, types, flat, pt.paths(state, structure))
        return flat, last

    def _protect(self, job: _Job, cached: _Plan, flat: Sequence[Any]) -> bool:
        """Keeps the device arrays of a state as they are. Returns whether some are not on the host yet."""
        arrays = {i: cached.data(i, flat[i]) for i in cached.device}
        copied: dict[int, Any] = {}
        for group, members in cached.groups.items():
            flying = [i for i in members if not (cached.places[i][0] and self._ready(i, arrays[i], cached))]
            if flying:
                chosen = cached.copied(group, flying)
                copied |= zip(chosen, self._copies({i: arrays[i] for i in chosen}, cached), strict=True)
        for i, (_, _, single) in cached.places.items():
            if (array := copied.get(i)) is not None:
                job.pieces[i] = _parts(array) if hasattr(array, "sharding") else [(None, array)]
                continue
            try:
                if single:
                    job.pieces[i] = [(None, _asarray(arrays[i].addressable_data(0)))]
                else:
                    job.pieces[i] = [(index, _asarray(part)) for index, part in _parts(arrays[i])]
            except RuntimeError as err:
                raise self._gone(arrays[i], cached.plan.leaves[i].path, err) from err
        return bool(copied)

    def _ready(self, i: int, array: Any, cached: _Plan) -> bool:
        try:
            return bool(array.is_ready())
        except RuntimeError as err:
            raise self._gone(array, cached.plan.leaves[i].path, err) from err

    def _gone(self, array: Any, path: str, err: Exception) -> Exception:
        if not array.is_deleted():
            return err
        return SnapshotError(
            f"{pt.show(path)} was donated or deleted before snapshot() was called; "
            "save what the step returns, not what it was given"
        )

    def _copies(self, arrays: dict[int, Any], cached: _Plan) -> list[Any]:
        try:
            copies: list[Any] = _program()(list(arrays.values()))
            return copies
        except Exception as err:  # no memory on the device, or a kind of memory that nothing computes in
            for i, a in arrays.items():
                if a.is_deleted():
                    raise self._gone(a, cached.plan.leaves[i].path, err) from err
            self._say("copy", f"the device could not copy the state ({type(err).__name__}: {err}); "
                              "snapshots wait for their transfer to the host instead")  # fmt: skip
            return [_asarray(a).copy() for a in arrays.values()]

    def _drop(self, step: int) -> bool:
        self.dropped += 1
        self.ring.stage(step, 0, -1, _nothing)  # counted in the ring's header, where the recorder sees it
        return False

    def _too_large(self, step: int, need: int) -> bool:
        self._drop(step)
        self._say(
            "large",
            f"the state of step {step} takes {need} bytes, and a staging area has {self._capacity}: its snapshot is "
            f"dropped, as others like it will be; give Run state=, or snapshot_capacity={need}, or set "
            "ring.staging_capacity",
        )
        return False

    def _say(self, about: str, text: str) -> None:
        if about not in self._told:
            self._told.add(about)
            warn(text, Warning)

    def _speak(self) -> None:
        if self._later is not None:
            about, text = self._later
            self._later = None
            self._say(about, text)

    # In the thread

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            done = False
            try:
                done = self._finish(job)
            except Exception as err:
                self._later = ("failed", f"the snapshot of step {job.step} failed: {type(err).__name__}: {err}")
            with self._count:
                self._pending -= 1
                self.staged += done
                self.failed += not done
            self._moved = clock.monotonic()
            del job

    def _finish(self, job: _Job) -> bool:
        if not self._until(job.after):
            return False
        job.fetch()
        self._moved = clock.monotonic()
        # An area that was free when the state was taken, or will be when the one before it is durable.
        return self._until(self.ring.can_stage) and self.ring.stage(job.step, job.reason, job.layout.size, job.fill)

    def _until(self, ready: Callable[[], bool] | None) -> bool:
        pause = _PAUSE
        while ready is not None and not ready():
            if self._expired() or self.ring.ended:
                return False
            clock.sleep(pause)
            pause = min(2 * pause, _PAUSE_MAX)
        return True

    # The end

    def _expired(self) -> bool:
        return self._closing and clock.monotonic() > self._moved + self._timeout

    def close(self, timeout: float = 10.0) -> None:
        """Waits for the states on their way while they get on, at most timeout seconds without. What is left is counted
        as failed and warned of. A second call does nothing."""
        if self._closing or self._forked:
            return
        self._moved, self._timeout = clock.monotonic(), timeout
        self._closing = True
        if self._thread is not None:
            self._jobs.put(None)
            while self._thread.is_alive() and not self._expired():
                self._thread.join(0.05)
        self._speak()
        lost = self._pending + self.failed
        if lost:
            warn(f"{lost} snapshots that were taken did not reach the recorder", Warning)

    def forked(self) -> None:
        """In a child of os.fork(): everything here is the parent's."""
        self._forked = True
        self._thread = None
        self._jobs = queue.SimpleQueue()
        self._count = threading.Lock()


def _scalar(value: Any) -> Any:
    import numpy as np

    return _little(np.asarray(value))


def _little(array: Any) -> Any:
    """The array itself, or a copy in this machine's order of bytes, which is the format's."""
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _parts(array: Any) -> list[tuple[Any, Any]]:
    """The arrays on single devices that a device array consists of, each once, with its place; (None, part) if one.

    They are other objects than the caller's, so that a view of one goes with it, and is not kept in a cache of those.
    """
    if len(array.sharding.device_set) == 1 or array.is_fully_replicated:
        return [(None, array.addressable_data(0))]
    return [(shard.index, shard.data) for shard in array.addressable_shards if shard.replica_id == 0]


def _place(array: Any) -> tuple[bool, Any, bool]:
    """Whether a view of the array keeps it, what it can be copied together with, whether it lies on one device."""
    sharding = array.sharding
    devices = sharding.device_set
    host = next(iter(devices)).platform == "cpu" and views_hold()
    return host, (frozenset(devices), sharding.memory_kind), len(devices) == 1


_found: dict[str, Any] = {}


def views_hold() -> bool:
    """Whether a view of a CPU array keeps XLA from donating its buffer, as every version so far has it; asked once."""
    if "hold" not in _found:
        import jax
        import numpy as np

        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            array = jax.numpy.arange(64.0).block_until_ready()
            view = np.asarray(array.addressable_data(0))
            after = jax.jit(lambda a: a + 1, donate_argnums=0)(array).block_until_ready()
            _found["hold"] = view.ctypes.data != after.unsafe_buffer_pointer() and bool(view[63] == 63)
    return bool(_found["hold"])


def _program() -> Callable[[list[Any]], list[Any]]:
    """The compiled copy of a list of arrays; jax keeps one for each list of shapes."""
    if "copy" not in _found:
        import jax
        import jax.numpy as jnp

        def copy(one: Any, arrays: list[Any]) -> tuple[list[Any], Any]:
            # XLA runs a program in the calling thread if it counts few operations in it, and a copy is none, however
            # large it is. These few thousand make it go to a thread of XLA's.
            line = jnp.arange(64, dtype=jnp.float32) * one
            return [jnp.copy(a) for a in arrays], jnp.sum(jnp.outer(line, line) * one + one)

        compiled = jax.jit(copy)
        import numpy as np

        one = np.float32(1)
        _found["copy"] = lambda arrays: compiled(one, arrays)[0]
    found: Callable[[list[Any]], list[Any]] = _found["copy"]
    return found
