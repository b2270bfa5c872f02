"""Device values on their way to the ring: a bounded queue that the step loop appends to, and a thread that waits.

The caller's part is metadata only: names, shapes and dtypes are checked, a copy to the host is begun where the device
is not the host, and the arrays are appended to the queue. It never waits, never synchronises the device, and a full
queue drops the record and counts it. The thread takes what is ready, in order, in batches: it wakes a few hundred
times a second at most and lets go of the interpreter lock between small groups of records, so that a loop that needs
the lock waits tens of microseconds for it, not milliseconds.

Every record is written or counted: put = written + dropped + pending. Those dropped are of a full queue, of buffers
that were donated or deleted before they were read, of steps that the device made go backwards, or not ready at close.
"""

from __future__ import annotations

import threading
import time as clock
import warnings
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from usp._errors import ClosedError, Error, FieldError, ForkedError, StepError
from usp._pack import (
    check_leaf,
    encode,
    host_stack,
    host_steps,
    host_words,
    increasing,
    is_device_array,
    pack,
    packed_len,
)
from usp._schema import HEAD_WORDS, Field, Schema, check_names

if TYPE_CHECKING:
    import numpy as np

__all__ = ["DeviceQueue", "is_device_array", "pack"]

_PAUSE = 0.002  # s between looks at the queue while there is something in it
_PAUSE_MAX = 0.016  # s, reached while the device makes nothing ready
_GROUP = 4  # records between two moments without the interpreter lock
_BREATH = 20e-6  # s asleep at such a moment: after a sleep of zero the lock would be taken again before anyone woke
_BLOCK = 512  # records of a stacked entry that are encoded and emitted at once


class Sink(Protocol):
    """Where records go: a ring."""

    def emit_block(self, payloads: Any) -> int: ...

    def advance(self, first: int, last: int | None = None) -> None: ...


class _Check:
    """What the last good value of a field looked like: the next one is almost always alike."""

    __slots__ = ("copy", "dtype", "field", "name", "shape", "sharding")

    def __init__(self, field: Field) -> None:
        self.field, self.name = field, field.name
        self.shape: Any = None
        self.dtype: Any = None
        self.sharding: Any = None
        self.copy = False


class _Entry:
    """Records that wait: steps and times (int, or arrays of n), and one value for each field, or one packed array."""

    __slots__ = ("leaves", "many", "packed", "steps", "times", "watch")

    def __init__(self, steps: Any, times: Any, leaves: list[Any], packed: bool, many: int | None, watch: list[Any]):
        self.steps, self.times, self.leaves = steps, times, leaves
        self.packed, self.many, self.watch = packed, many, watch


class DeviceQueue:
    """Takes records of device values and writes them to a ring once they are there.

    ring: where they go. capacity: entries that may wait; a stacked entry counts as one. emitter: the object whose
    `deferred` is to be true while records wait here, so that host records keep their place behind them.
    The attributes records, written and dropped count records. Safe from several threads.
    """

    def __init__(self, ring: Sink, schema: Schema, capacity: int = 1024, emitter: Any = None) -> None:
        if capacity < 1:
            raise ValueError(f"queue of {capacity} records: want at least 1")
        self.records = 0
        self.written = 0
        self.dropped = 0
        self.emitter = emitter
        self._ring, self._schema, self._capacity = ring, schema, capacity
        self._checks = [_Check(f) for f in schema.fields]
        self._many_checks = [_Check(f) for f in schema.fields]
        self._packed_check = _Check(Field("packed", "metric", "u64", packed_len(schema)))
        self._class: Any = None  # of jax's arrays, once one was seen
        self._entries: deque[_Entry] = deque()
        self._lock = threading.Lock()  # counts and the queue's end
        self._write_lock = threading.Lock()  # the ring: close() may give up on a thread that still writes
        self._wake = threading.Event()
        self._idle = False
        self._closing = False
        self._gone: type[Error] | None = None
        self._abandoned = False
        self._message = ""
        self._told: set[str] = set()
        self._thread: threading.Thread | None = None
        self._buffer: Any = None

    # ---- the calling thread

    def put(self, step: Any, values: Any, time: int | None = None) -> bool:
        """Queues one record and returns at once; False if the queue was full and the record is dropped and counted.

        step: int, or an integer scalar on the device. values: a mapping of exactly the schema's fields to device
        arrays, numpy arrays (copied here) or numbers, or what `pack` returned. time: Unix ns, None for now.
        Raises FieldError, StepError, ClosedError; then nothing is queued.
        """
        if self._gone is not None or self._message:
            self._say()
        watch: list[Any] = []
        packed = False
        if isinstance(values, Mapping):
            leaves = self._leaves(self._checks, values, None, watch)
        else:
            leaves = [self._packed(values, None, watch)]
            packed = True
        if type(step) is not int:
            step = self._step(step, watch)
        entry = _Entry(step, clock.time_ns() if time is None else time, leaves, packed, None, watch)
        return self._append(entry, 1, step, step)

    def put_many(self, steps: Any, values: Any, times: Any = None) -> bool:
        """Queues n records as one entry: values have a leading axis of n, as lax.scan stacks them; packed: (n, words).

        steps: n increasing integers (range, list, numpy), or an integer array (n,) on the device. times: n Unix ns,
        one for all, or None for now. Raises as put does.
        """
        import numpy as np

        if self._gone is not None or self._message:
            self._say()
        watch: list[Any] = []
        if self._is_array(steps):
            if steps.ndim != 1 or steps.dtype.kind not in "iu":
                raise FieldError(f"steps: shape {steps.shape}, dtype {steps.dtype}: want integers of shape (n,)")
            many, first, last = steps.shape[0], None, None
            self._start(steps, watch)
        else:
            steps = host_steps(steps)
            many = len(steps)
            first, last = (int(steps[0]), int(steps[-1])) if many else (0, 0)
        if many == 0:
            return True
        times = clock.time_ns() if times is None else times if isinstance(times, int) else np.array(times, np.int64)
        if not isinstance(times, int) and times.shape != (many,):
            raise FieldError(f"times: shape {times.shape}: want ({many},), or one number")
        packed = not isinstance(values, Mapping)
        leaves = [self._packed(values, many, watch)] if packed else self._leaves(self._many_checks, values, many, watch)
        return self._append(_Entry(steps, times, leaves, packed, many, watch), many, first, last)

    def pending(self) -> int:
        """Number of records that wait."""
        return self.records - self.written - self.dropped

    def _append(self, entry: _Entry, n: int, first: Any, last: Any) -> bool:
        with self._lock:
            if type(first) is int:
                self._ring.advance(first, last)
            self.records += n
            if len(self._entries) >= self._capacity:
                self.dropped += n
                return False
            if self.emitter is not None:
                self.emitter.deferred = True
            self._entries.append(entry)
        if self._thread is None:
            self._begin()
        elif self._idle:
            self._wake.set()
        return True

    def _leaves(self, checks: list[_Check], values: Mapping[str, Any], many: int | None, watch: list[Any]) -> list[Any]:
        if len(values) != len(checks):
            check_names(self._schema.fields, values)
        leaves = []
        cls = self._class
        for c in checks:
            try:
                v = values[c.name]
            except KeyError:
                check_names(self._schema.fields, values)
                raise
            alike = type(v) is cls and v.shape == c.shape and v.dtype is c.dtype and v.sharding is c.sharding
            if alike and not v.is_deleted():
                if c.copy:
                    v.copy_to_host_async()
                watch.append(v)
            else:
                v = self._take(c, v, many, watch)
            leaves.append(v)
        return leaves

    def _take(self, c: _Check, v: Any, many: int | None, watch: list[Any]) -> Any:
        """The slow way: a first value, a host value, or one that does not fit."""
        if not self._is_array(v):
            return host_words(c.field, v) if many is None else host_stack(c.field, v, many)
        check_leaf(c.field, v.shape, v.dtype, many)
        c.copy = self._start(v, watch, c.name)
        c.shape, c.dtype, c.sharding = v.shape, v.dtype, v.sharding
        return v

    def _packed(self, v: Any, many: int | None, watch: list[Any]) -> Any:
        c = self._packed_check
        shape = (c.field.len,) if many is None else (many, c.field.len)
        if type(v) is self._class and v.shape == shape and v.sharding is c.sharding and not v.is_deleted():
            if c.copy:
                v.copy_to_host_async()
            watch.append(v)
            device = True
        else:
            device = self._is_array(v)
            if not device and type(v).__module__ != "numpy":
                raise FieldError(
                    f"values of type {type(v).__name__}: want a mapping of the fields, or what pack() returned"
                )
            if device and v.shape == shape:
                c.copy = self._start(v, watch)
                c.sharding = v.sharding
        if v.shape != shape or v.dtype != "uint32":
            raise FieldError(f"packed values: {v.dtype} of shape {v.shape}: want uint32 {shape}, what pack() returns")
        return v if device else v.copy()

    def _is_array(self, v: Any) -> bool:
        """Whether v is an array of a device. Raises FieldError for a traced value: there is no array behind it."""
        if type(v) is self._class:
            return True
        if not is_device_array(v):
            return False
        self._class = type(v)
        return True

    def _start(self, v: Any, watch: list[Any], name: str = "") -> bool:
        """Begins the copy to the host; returns whether there is one to make: on the CPU it costs and brings nothing."""
        what = f"field {name!r}" if name else "the array"
        if v.is_deleted():
            raise FieldError(
                f"{what}: its buffer was donated or deleted: emit an output that the next step does not take"
            )
        sharding = v.sharding
        if not (sharding.is_fully_addressable or sharding.is_fully_replicated):
            raise FieldError(f"{what}: parts of it are in other processes: reduce it, or replicate it, before emit")
        copy = any(d.platform != "cpu" for d in sharding.addressable_devices)
        if copy:
            v.copy_to_host_async()
        watch.append(v)
        return copy

    def _step(self, step: Any, watch: list[Any]) -> Any:
        if self._is_array(step):
            if step.shape != () or step.dtype.kind not in "iu":
                raise FieldError(f"step: shape {step.shape}, dtype {step.dtype}: want an integer scalar")
            self._start(step, watch)
            return step
        try:
            step = step.__index__()
        except AttributeError:
            raise StepError(f"step {step!r}: want an integer") from None
        return step

    def _say(self) -> None:
        """Raises if the queue has ended; else passes on what the thread had to tell, in the caller's thread."""
        if self._gone is not None:
            raise self._gone("the run has ended" if self._gone is ClosedError else "the run is of the parent process")
        message, self._message = self._message, ""
        if message:
            warnings.warn(message, RuntimeWarning, stacklevel=4)

    # ---- the end

    def close(self, timeout: float = 10.0) -> int:
        """Writes what is ready within timeout seconds and ends; returns how many records were given up, now dropped.

        Records whose values are not ready by then are dropped and counted; a device that hangs delays it no longer
        than the timeout. Further calls return 0.
        """
        if self._gone is not None:
            return 0
        self._gone = ClosedError
        self._closing = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout)
        with self._write_lock:
            self._abandoned = True
        left = self.pending()
        self.dropped += left
        self._entries.clear()
        message, self._message = self._message, ""
        if left:
            message = (
                f"{left} records were not ready {timeout:g} s after the run's end and are dropped. {message}".strip()
            )
        if message:
            warnings.warn(message, RuntimeWarning, stacklevel=3)
        return left

    def forked(self) -> None:
        """In a child of a fork: the thread and the ring are the parent's; put raises ForkedError."""
        self._gone = ForkedError
        self._abandoned = True
        self._entries = deque()
        self._thread = None

    # ---- the thread

    def _begin(self) -> None:
        with self._lock:
            if self._thread is None and self._gone is None:
                self._thread = threading.Thread(target=self._run, name="usp-device", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        pause = _PAUSE
        while not self._abandoned:
            if not self._entries:
                if self._closing:
                    return
                self._idle = True
                if not self._entries and not self._closing:
                    self._wake.wait()
                self._wake.clear()
                self._idle = False
                pause = _PAUSE
            if not self._closing:
                clock.sleep(pause)
            if self._drain():
                pause = _PAUSE
            elif self._closing:
                clock.sleep(_PAUSE)
            else:
                pause = min(2 * pause, _PAUSE_MAX)

    def _drain(self) -> bool:
        """Writes the entries that are ready, in order; returns whether there was one."""
        entries = self._entries
        progress = False
        while entries and not self._abandoned:
            group: list[_Entry] = []
            for i in range(min(_GROUP, len(entries))):
                entry = entries[i]
                stacked = entry.many is not None
                if (stacked and group) or not all(map(_ready, entry.watch)):
                    break
                group.append(entry)
                if stacked:
                    break
            if not group:
                return progress
            progress = True
            before = self.written + self.dropped
            try:
                if group[0].many is None:
                    self._write(group)
                else:
                    self._write_stacked(group[0])
            except Exception as e:  # it must not end the thread: everything behind it would be lost
                n = sum(entry.many or 1 for entry in group)
                self._lost(before + n - self.written - self.dropped, f"could not be written: {type(e).__name__}: {e}")
            self._done(len(group))
        return progress

    def _done(self, n: int) -> None:
        """Takes n entries off the queue. What is behind them may wait a moment: the loop may want the lock."""
        entries = self._entries
        with self._lock:
            for _ in range(n):
                if entries:  # close() may have cleared it
                    entries.popleft()
            if not entries and self.emitter is not None:
                self.emitter.deferred = False
        if entries and len(entries) < self._capacity // 2:
            clock.sleep(_BREATH)

    def _write(self, group: list[_Entry]) -> None:
        """Writes single records."""
        import numpy as np

        block = self._block(len(group))
        rows = 0
        for entry in group:
            try:
                step = entry.steps if type(entry.steps) is int else int(np.asarray(entry.steps))
                leaves = [v if type(v) is np.ndarray else np.asarray(v) for v in entry.leaves]
            except RuntimeError as e:  # of jax: the array was deleted
                self._lost(1, f"had a buffer that was donated or deleted before it was read ({e})")
                continue
            if type(entry.steps) is not int and not self._advance(step, step):
                self._lost(1, "had a step, read from the device, that was not above the one before it")
                continue
            block[rows, :HEAD_WORDS] = step & _MASK, entry.times & _MASK
            self._fill(block[rows : rows + 1], leaves, entry)
            rows += 1
        self._send(block[:rows])

    def _write_stacked(self, entry: _Entry) -> None:
        """Writes the n records of a stacked entry, some hundred at a time."""
        import numpy as np

        many = entry.many or 0
        try:
            leaves = [v if type(v) is np.ndarray else np.asarray(v) for v in entry.leaves]
            steps = np.asarray(entry.steps)
        except RuntimeError as e:
            self._lost(many, f"had a buffer that was donated or deleted before it was read ({e})")
            return
        if self._is_array(entry.steps):
            keep = increasing(steps) if steps.min() >= 0 else False
            if not keep or not self._advance(int(steps[0]), int(steps[-1])):
                self._lost(many, "had steps, read from the device, that do not increase")
                return
        for at in range(0, many, _BLOCK):
            end = min(at + _BLOCK, many)
            block = self._block(end - at)
            block[:, 0] = steps[at:end]
            if isinstance(entry.times, int):
                block[:, 1] = entry.times & _MASK
            else:
                block.view(np.int64)[:, 1] = entry.times[at:end]
            self._fill(block, [v[at:end] for v in leaves], entry)
            self._send(block)
            clock.sleep(_BREATH)

    def _fill(self, block: np.ndarray, leaves: list[np.ndarray], entry: _Entry) -> None:
        """Writes the values of the block. leaves: packed, or one for each field, which is words if of the host."""
        import numpy as np

        if entry.packed:
            block.view("u4")[:, 2 * HEAD_WORDS :] = leaves[0]
            return
        fields = zip(self._schema.fields, self._schema.offsets, leaves, entry.leaves, strict=True)
        for field, offset, leaf, original in fields:
            out = block[:, offset : offset + (field.len or 0)]
            if type(original) is np.ndarray:  # of the host: words already
                out[...] = leaf
            else:
                encode(out, leaf, field.type or "")

    def _advance(self, first: int, last: int) -> bool:
        try:
            self._ring.advance(first, last)
        except StepError:
            return False
        return True

    def _block(self, rows: int) -> np.ndarray:
        """Memory for some records, used again for the next."""
        import numpy as np

        if self._buffer is None or len(self._buffer) < rows:
            self._buffer = np.empty((rows, self._schema.words), np.uint64)
        return self._buffer[:rows]

    def _send(self, block: np.ndarray) -> None:
        if not len(block):
            return
        with self._write_lock:
            if self._abandoned:
                return
            self._ring.emit_block(memoryview(block).cast("B"))
            self.written += len(block)

    def _lost(self, n: int, why: str) -> None:
        """Counts records that cannot be written, and leaves word for the caller, once for each reason."""
        with self._write_lock:
            if self._abandoned:
                return
            self.dropped += n
        key = why.partition("(")[0]
        if key not in self._told and len(self._told) < 16:
            self._told.add(key)
            self._message += f"{n} record{'' if n == 1 else 's'} {why}; dropped and counted. "


_MASK = (1 << 64) - 1


def _ready(array: Any) -> bool:
    """Whether reading the array would not wait; it does not if the array is gone, which reading it will tell."""
    try:
        return bool(array.is_ready())
    except RuntimeError:
        return True
