"""Device values on their way to the ring: a bounded queue that the step loop appends to, and a thread that waits.

The caller's part is metadata only: names, shapes and dtypes are checked, a copy to the host is begun where the device
is not the host, and the arrays are appended to the queue. It never waits, never synchronises the device, and a full
queue drops the record and counts it. The thread looks at the queue some sixty times a second, more often where more of
it gets ready, and takes what is ready, in order: a step that is disturbed takes the work of many, and most steps of a
loop are as if there were no thread. It does so in small groups with a breath between: a loop that needs the interpreter
lock waits a tenth of a millisecond for it, not several. The extension does almost all of this (native/reader.c); the
code here does without it, and takes what it leaves: stacked records, steps on the device, and arrays whose memory the
host cannot read in place.

Every record is written or counted: put = written + dropped + pending. Those dropped are of a full queue, of buffers
that were donated or deleted before they were read, of steps that the device made go backwards, or not ready at close.
"""

from __future__ import annotations

import threading
import time as clock
from collections import deque
from collections.abc import Callable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from usp._arrays import is_device_array, ready, start
from usp._errors import ClosedError, DroppedWarning, Error, FieldError, ForkedError, StepError, warn
from usp._pack import (
    check_leaf,
    fill,
    host_stack,
    host_steps,
    host_words,
    increasing,
    pack,
    packed_len,
)
from usp._schema import HEAD_WORDS, Field, Schema, check_names

if TYPE_CHECKING:
    import numpy as np

__all__ = ["DeviceQueue", "is_device_array", "pack"]

_PAUSE = 0.003  # s before the second look at the queue
_PAUSE_MAX = 0.016  # s between looks, less where a quarter of the queue gets ready in it
_GROUP = 4  # records written before others may have the interpreter lock
_BREATH = 20e-6  # s, the least pause: after a sleep of zero the lock would be taken again before anyone woke
_BLOCK = 512  # records of a stacked entry that are encoded and emitted at once


class Sink(Protocol):
    """Where records go: a ring."""

    def emit_block(self, payloads: Any) -> int: ...

    def advance(self, first: int, last: int | None = None) -> None: ...

    def reader(self) -> Any: ...

    @property
    def last_step(self) -> int: ...


class _Check:
    """What the last good value of a field looked like: the next one is almost always alike."""

    __slots__ = ("copy", "dtype", "field", "name", "shape", "sharding")

    def __init__(self, field: Field) -> None:
        self.field, self.name = field, field.name
        self.shape: Any = None
        self.dtype: Any = None
        self.sharding: Any = None
        self.copy = False


class _InTurn:
    """Steps that are on the device, or behind such ones: whether they go on is known in their turn."""

    __slots__ = ("given",)

    def __init__(self, given: Any) -> None:
        self.given = given  # int, or an array


class _Entry(NamedTuple):
    """Records that wait. The extension knows the order, and makes bare tuples."""

    steps: Any  # int, or an array, or one of them in turn; times too, but not in turn
    times: Any
    leaves: list[Any]  # one value for each field, or one packed array
    packed: bool
    many: int | None  # records of a stacked entry
    watch: list[Any]  # arrays that have to be ready


class DeviceQueue:
    """Takes records of device values and writes them to a ring once they are there.

    ring: where they go. capacity: entries that may wait; a stacked entry counts as one. emitter: the object whose
    `deferred` is to be true while records wait here, so that host records keep their place behind them.
    The attributes records, written and dropped count records. Safe from several threads.
    """

    def __init__(self, ring: Sink, schema: Schema, capacity: int = 1024, emitter: Any = None) -> None:
        if capacity < 1:
            raise ValueError(f"queue of {capacity} records: want at least 1")
        self.dropped = 0
        self._records = 0  # put by Python
        self._ring, self._schema, self._capacity = ring, schema, capacity
        self._checks = [_Check(f) for f in schema.fields]
        self._many_checks = [_Check(f) for f in schema.fields]
        self._packed_check = _Check(Field("packed", "metric", "u64", packed_len(schema)))
        self._class: Any = None  # of jax's arrays, once one was seen
        self._entries: deque[_Entry] = deque()
        self._in_turn = 0  # entries whose steps are taken in their turn
        self._above = -1  # the last step known when it was put, of those
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
        self._reader = ring.reader()
        if self._reader is not None:
            self._reader.attach(self._entries, capacity, self._lock)
        self.serve(emitter)
        self._written = 0  # by Python
        self._odd = 0  # grows while the reader leaves everything to Python
        self._left_out = 0  # looks for which it is not asked

    def serve(self, emitter: Any) -> None:
        """Makes the emitter, None for none, the one whose records keep their place behind those here."""
        self.emitter = emitter
        if self._reader is not None and emitter is not None:
            emitter.reader = self._reader

    # ---- the calling thread

    def put(self, step: Any, values: Any, time: int | None = None) -> bool:
        """Queues one record and returns at once; False if the queue was full and the record is dropped and counted.

        step: int, or an integer scalar on the device. values: a mapping of exactly the schema's fields to device
        arrays, numpy arrays (copied here) or numbers, or what `pack` returned. time: Unix ns, None for now.
        Raises FieldError, StepError, ClosedError; then nothing is queued. Arrays may be donated afterwards; delete()
        must not be called on them by hand, since the thread may be reading.
        """
        if self._gone is not None or self._message:
            self._say()
        packed = False
        if self._reader is not None and (leaves := self._reader.leaves(values)) is not None:
            watch = leaves
        else:
            watch = []
            if isinstance(values, Mapping):
                leaves = self._leaves(self._checks, values, None, watch)
            else:
                leaves = [self._packed(values, None, watch)]
                packed = True
        if type(step) is not int:
            watch = watch.copy()  # that may be leaves
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
            start(steps, "the array of steps")
            watch.append(steps)
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

    @property
    def records(self) -> int:
        """Number of records that were put, also of those dropped."""
        return self._records + (self._reader.queued if self._reader is not None else 0)

    @property
    def written(self) -> int:
        """Number of records that are in the ring."""
        return self._written + (self._reader.written if self._reader is not None else 0)

    def pending(self) -> int:
        """Number of records that wait."""
        return self.records - self.written - self.dropped

    def _append(self, entry: _Entry, n: int, first: Any, last: Any) -> bool:
        with self._lock:
            if self._in_turn or type(first) is not int:
                entry = self._wait_turn(entry, first, last)
            else:
                self._ring.advance(first, last)
            self._records += n
            if len(self._entries) >= self._capacity:
                self.dropped += n
                return False
            self._in_turn += type(entry.steps) is _InTurn
            if self.emitter is not None:
                self.emitter.deferred = True
            if self._reader is not None and self._thread is not None:
                # Before the entry is there: a thread that goes to rest after it closes it again.
                self._reader.open = True
                if self._gone is not None or self._message or self._in_turn:
                    self._reader.open = False
            self._entries.append(entry)
        if self._thread is None:
            self._begin()
        elif self._idle:
            self._wake.set()
        return True

    def _wait_turn(self, entry: _Entry, first: Any, last: Any) -> _Entry:
        """The entry, its steps to be taken in their turn. Raises StepError for what is wrong already. Locked."""
        if type(first) is int:
            if not 0 <= first <= last <= _MASK:
                raise StepError(f"steps {first} to {last}: want 0 to 2^64-1, increasing")
            before = max(self._above, self._ring.last_step)
            if first <= before:
                raise StepError(f"step {first} is not above {before}, the one before it")
            self._above = last
        return entry._replace(steps=_InTurn(entry.steps))

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
        c.copy = start(v, f"field {c.name!r}")
        c.shape, c.dtype, c.sharding = v.shape, v.dtype, v.sharding
        if many is None and not c.copy and self._reader is not None:
            self._reader.learn(self._checks.index(c), v)
        watch.append(v)
        return v

    def _packed(self, v: Any, many: int | None, watch: list[Any]) -> Any:
        c = self._packed_check
        shape = (c.field.len,) if many is None else (many, c.field.len)
        device = self._is_array(v)
        if not device and type(v).__module__ != "numpy":
            raise FieldError(
                f"values of type {type(v).__name__}: want a mapping of the fields, or what pack() returned"
            )
        if v.shape != shape or v.dtype != "uint32":
            raise FieldError(f"packed values: {v.dtype} of shape {v.shape}: want uint32 {shape}, what pack() returns")
        if not device:
            return v.copy()
        if v.sharding is not c.sharding or v.is_deleted():
            c.copy = start(v, "the packed array")
            c.sharding = v.sharding
            if many is None and not c.copy and self._reader is not None:
                self._reader.learn(len(self._checks), v)
        elif c.copy:
            v.copy_to_host_async()
        watch.append(v)
        return v

    def _is_array(self, v: Any) -> bool:
        """Whether v is an array of a device. Raises FieldError for a traced value: there is no array behind it."""
        if type(v) is self._class:
            return True
        if not is_device_array(v):
            return False
        self._class = type(v)
        return True

    def _step(self, step: Any, watch: list[Any]) -> Any:
        if self._is_array(step):
            if step.shape != () or step.dtype.kind not in "iu":
                raise FieldError(f"step: shape {step.shape}, dtype {step.dtype}: want an integer scalar")
            start(step, "the step")
            watch.append(step)
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
        message, self._message = self._message.rstrip(), ""
        if message:
            warn(message, DroppedWarning)

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
        if self._reader is not None:
            self._reader.end(False)
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout)
        with self._write_lock:
            self._abandoned = True
            if self._reader is not None:
                self._reader.end(True)
        left = self.pending()
        self.dropped += left
        self._entries.clear()
        message, self._message = self._message, ""
        if left:
            message = (
                f"{left} records were not ready {timeout:g} s after the run's end and are dropped. {message}".strip()
            )
        if message:
            warn(message.rstrip(), DroppedWarning)
        return left

    def forked(self) -> None:
        """In a child of a fork: the thread and the ring are the parent's; put raises ForkedError."""
        self._gone = ForkedError
        self._abandoned = True
        if self._reader is not None:
            self._reader.end(True)
        self._entries, self._in_turn = deque(), 0
        self._thread = None

    # ---- the thread

    def _begin(self) -> None:
        with self._lock:
            if self._thread is None and self._gone is None:
                self._thread = threading.Thread(target=self._run, name="usp-device", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        pause, found = _PAUSE, 0
        while not self._abandoned:
            if not self._entries:
                if self._closing:
                    return
                if pause >= _PAUSE_MAX:
                    self._rest()
                    pause = _PAUSE
            if self._reader is not None and not self._left_out:
                before = self._reader.written
                if self._reader.run(self.emitter):
                    pause = _PAUSE_MAX
                    continue
                self._odd = 0 if self._reader.written > before else min(2 * self._odd + 1, 255)
                self._left_out = self._odd
            elif not self._closing:
                clock.sleep(_BREATH if found else pause)
            n = self._drain()
            self._left_out -= self._left_out > 0
            found += n
            if n == _GROUP:
                continue
            if self._closing and not n:
                clock.sleep(_PAUSE)
            pause, found = self._pause(pause, found), 0

    def _rest(self) -> None:
        """Waits for an entry, or the end."""
        self._idle = True
        if self._reader is not None:
            self._reader.open = False
        if not self._entries and not self._closing:
            self._wake.wait()
        self._wake.clear()
        self._idle = False

    def _pause(self, pause: float, found: int) -> float:
        """How long to sleep after a look that found so many entries; as reader.c has it."""
        quicker = found > 0 and found >= self._capacity // 4
        return min(max(pause / 2 if quicker else 2 * pause, _BREATH), _PAUSE_MAX)

    def _drain(self) -> int:
        """Writes a group of the entries that are ready, in order; returns how many it was, of stacked ones a group."""
        group: list[_Entry] = []
        for entry in map(_Entry._make, list(islice(self._entries, _GROUP))):
            stacked = entry.many is not None
            if (stacked and group) or not all(map(ready, entry.watch)):
                break
            group.append(entry)
            if stacked:
                self._finish(1, entry.many, lambda e=entry: self._write_stacked(e))
                return _GROUP
        if group:
            self._finish(len(group), len(group), lambda: self._write(group))
        return len(group)

    def _finish(self, n: int, rows: int, write: Callable[[], None]) -> None:
        """Writes n entries, which are so many records, and takes them off the queue."""
        before = self.written + self.dropped
        try:
            write()
        except Exception as e:  # it must not end the thread: everything behind it would be lost
            self._lost(before + rows - self.written - self.dropped, f"could not be written: {type(e).__name__}: {e}")
        entries = self._entries
        with self._lock:
            for _ in range(n):
                if entries:  # close() may have cleared it
                    self._in_turn -= type(entries.popleft()[0]) is _InTurn
            if not entries and self.emitter is not None:
                self.emitter.deferred = False

    def _write(self, group: list[_Entry]) -> None:
        """Writes single records."""
        import numpy as np

        block = self._block(len(group))
        rows = 0
        for entry in group:
            try:
                turn = type(entry.steps) is _InTurn
                step = int(np.asarray(entry.steps.given)) if turn else entry.steps
                leaves = [v if type(v) is np.ndarray else np.asarray(v) for v in entry.leaves]
            except RuntimeError as e:  # of jax: the array was deleted
                self._lost(1, f"had a buffer that was donated or deleted before it was read ({e})")
                continue
            if turn and not self._advance(step, step):
                self._lost(1, "had a step, on the device or behind one there, that was not above the one before it")
                continue
            block[rows, :HEAD_WORDS] = step & _MASK, entry.times & _MASK
            fill(block[rows : rows + 1], self._schema, leaves, entry.leaves, entry.packed)
            rows += 1
        if rows:
            self._send(memoryview(block[:rows]).cast("B"), rows)

    def _write_stacked(self, entry: _Entry) -> None:
        """Writes the n records of a stacked entry, some hundred at a time."""
        import numpy as np

        many = entry.many or 0
        try:
            leaves = [v if type(v) is np.ndarray else np.asarray(v) for v in entry.leaves]
            turn = type(entry.steps) is _InTurn
            steps = np.asarray(entry.steps.given if turn else entry.steps)
        except RuntimeError as e:
            self._lost(many, f"had a buffer that was donated or deleted before it was read ({e})")
            return
        if turn:
            keep = increasing(steps) if steps.min() >= 0 else False
            if not keep or not self._advance(int(steps[0]), int(steps[-1])):
                self._lost(many, "had steps, on the device or behind some there, that do not increase")
                return
        for at in range(0, many, _BLOCK):
            end = min(at + _BLOCK, many)
            block = self._block(end - at)
            block[:, 0] = steps[at:end]
            if isinstance(entry.times, int):
                block[:, 1] = entry.times & _MASK
            else:
                block.view(np.int64)[:, 1] = entry.times[at:end]
            fill(block, self._schema, [v[at:end] for v in leaves], entry.leaves, entry.packed)
            self._send(memoryview(block).cast("B"), end - at)
            clock.sleep(_BREATH)

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

    def _send(self, payloads: Any, rows: int) -> None:
        with self._write_lock:
            if self._abandoned:
                return
            self._ring.emit_block(payloads)
            self._written += rows

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
            if self._reader is not None:
                self._reader.open = False  # the next record comes by Python, which says it


_MASK = (1 << 64) - 1
