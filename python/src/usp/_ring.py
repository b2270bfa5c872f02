"""The producer's end of a ring in shared memory: records and staged states go in, and nothing is ever waited for.

A ring is written by one process and read by the recorder; the format is doc/format/ring.md. The extension
`usp._native` writes the slots if it could be built. Without it this module does, by 8-byte memoryview stores, which
only x86-64 keeps in order.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import struct
import sys
import threading
import weakref
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

from usp import _ringfile as rf
from usp._encode import Emitter, Slow
from usp._errors import ClosedError, FieldError, ForkedError, RingError, StepError
from usp._ringfile import default_dir, prepare_dir, ring_path
from usp._schema import Schema

try:
    import usp._native as _native  # of from … import the error would not be that there is none
except ImportError as e:
    _native = None  # type: ignore[assignment]
    _why_not_native = str(e)
else:
    _why_not_native = ""

__all__ = ["Consumer", "Ring", "default_dir", "native_available", "prepare_dir", "ring_path"]

_CRC_HEAD = struct.Struct("<QI").pack
_TYPE_CODES = {"f64": 0, "f32": 1, "i64": 2, "u64": 3}


class Consumer(NamedTuple):
    """What the recorder last said about itself.

    phase: 0 none, 1 attached, 2 everything drained and durable. position: of the next record it reads. stored, lost,
    synced (records below are durable or accounted for), snapshots, lost_storage, held, unsaved: counts. pid. fault:
    what storage says now, an errno, 0 if it is well.
    """

    phase: int = 0
    position: int = 0
    stored: int = 0
    lost: int = 0
    synced: int = 0
    snapshots: int = 0
    pid: int = 0
    lost_storage: int = 0
    fault: int = 0
    held: int = 0
    unsaved: int = 0


def native_available() -> str:
    """Returns "" if the extension is there, or else why it is not."""
    return _why_not_native


def _pure_possible() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64") and struct.calcsize("P") == 8


class _Area:
    """One staging area."""

    def __init__(self, file: rf.NewFile) -> None:
        self.file = file
        self.view = memoryview(file.map)
        self.words = self.view.cast("Q")


class Ring:
    """A ring and its staging areas, made and locked for as long as the process lives or until `finish`.

    path: of the ring; its directory must exist (`prepare_dir`). schema: of its records. meta: JSON about the producer,
    at most 64 KiB. slots: a power of two. staging_capacity: bytes of each staging area, 0 without any.
    native: None takes the extension if it is there, True insists on it, False does without.

    All memory is reserved and touched here. Raises RingError if there is no room (it names the directory and the bytes
    needed), if the name is taken, or if neither the extension nor an x86-64 is there; nothing is left behind then.
    All methods may be called from any thread of this process.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        run_id: str,
        schema: Schema,
        meta: bytes,
        *,
        generation: int = 0,
        slots: int = 65536,
        staging_areas: int = 0,
        staging_capacity: int = 0,
        native: bool | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self.native = _choose(native)
        self.drops = 0
        self.schema = schema
        self.staging = staging_areas, staging_capacity  # how many areas, and the bytes of each
        self._layout = rf.Layout(
            run_id.encode(), schema.text, meta, schema.payload_len, slots, generation, staging_areas, staging_capacity
        )
        self._layout.check()
        self._staging_crc = False
        self._ticket = 0
        self._next = 0
        self._last_step = -1
        self.late = 0  # of the records of programs on a device, those whose step was not above the last one; known once detached
        self._state = rf.STATE_OPEN
        self._forked = False
        # A handler of a signal may end the ring, or emit, in the middle of what this thread does with it.
        self._lock = threading.RLock()
        self._stage_lock = threading.RLock()
        self._files: list[rf.NewFile] = []
        self._areas: list[_Area] = []
        self._writer: Any = None
        self._lent = False
        if os.path.lexists(self.path):
            raise rf.exists_error(self.path)
        try:
            self._make()
        except BaseException:
            self._release()
            for file in self._files:
                file.discard()
            raise
        _rings.add(self)

    def _make(self) -> None:
        lay = self._layout
        ring = rf.NewFile(self.path, lay.file_size)
        self._files.append(ring)
        header = lay.encode()
        ring.map[: len(header)] = header
        for i in range(lay.staging_areas):
            area = rf.NewFile(f"{self.path}.stage{i}", lay.area_size)
            self._files.append(area)
            head = lay.encode_area(i)
            area.map[: len(head)] = head
            self._areas.append(_Area(area))
        self._view = memoryview(ring.map)
        self._words: memoryview | None = self._view.cast("Q")
        self._words[rf.OFF_STATE // 8] = rf.STATE_OPEN
        if self.native:
            self._writer = _native.Writer(ring.map, lay.header_len, lay.slot_size, lay.slots, lay.payload_len)
            self._fields = tuple((f.name, _TYPE_CODES[str(f.type)], f.len) for f in self.schema.fields)
        self._first = lay.header_len // 8
        self._stride = lay.slot_size // 8
        self._mask = lay.slots - 1
        self._count = lay.payload_len // 8
        # The ring's name first: it decides whose the path is.
        try:
            ring.link()
        except FileExistsError:
            raise rf.exists_error(self.path) from None
        except OSError as e:
            raise rf.error(e.errno, f"cannot name the ring {self.path}: {e.strerror}") from e
        for file in self._files[1:]:
            try:
                try:
                    file.link()
                except FileExistsError:  # of a ring that was removed by hand
                    os.unlink(file.path)
                    file.link()
            except OSError as e:
                raise rf.error(e.errno, f"cannot name the staging file {file.path}: {e.strerror}") from e

    # Records

    @property
    def position(self) -> int:
        """Number of records emitted, which is the sequence number of the next."""
        if self._lent:
            words = self._words
            return self._next if words is None else words[rf.OFF_POSITION // 8]
        return self._next if self._writer is None else self._writer.position

    @property
    def last_step(self) -> int:
        """The highest step that `advance` or an emitter has accepted, -1 before the first."""
        return self._last_step if self._writer is None or self._lent else self._writer.last_step

    def advance(self, first: int, last: int | None = None) -> None:
        """Takes the steps first to last (None: first alone), which must be above every one before, as the last ones.

        Raises StepError if they are not. An emitter does this for the records that it writes itself; who queues a
        record calls it when it is queued.
        """
        last = first if last is None else last
        if not 0 <= first <= last < 1 << 64:
            raise StepError(f"steps {first} to {last}: want 0 to 2^64-1, increasing")
        if self._writer is not None:
            self._writer.advance(first, last)
            return
        with self._lock:
            if self._words is None:
                raise self._gone()
            if first <= self._last_step:
                raise StepError(f"step {first} is not above {self._last_step}, the one before it")
            self._last_step = last

    def emit(self, payload: bytes | bytearray | memoryview) -> int:
        """Writes one record, exactly payload_len bytes, and returns its sequence number. It does not look at the step.

        Raises FieldError for another length, ClosedError, ForkedError.
        """
        if self._writer is not None:
            return self._writer.emit(payload)
        payload = bytes(payload)
        if len(payload) != self._layout.payload_len:
            raise FieldError(f"a record of {len(payload)} bytes: want {self._layout.payload_len}")
        return self._publish(payload, None)

    def emit_block(self, payloads: bytes | bytearray | memoryview) -> int:
        """Writes n records that lie one after the other, n times payload_len bytes, and returns the first one's number.

        Records of other threads may come between them. Raises FieldError for another length, ClosedError, ForkedError.
        """
        if self._writer is not None:
            return self._writer.emit_block(payloads, self._layout.payload_len)
        size, whole = self._layout.payload_len, bytes(payloads)
        if not whole or len(whole) % size:
            raise FieldError(f"{len(whole)} bytes of records: want a multiple of {size}")
        first = self._publish(whole[:size], None)
        for at in range(size, len(whole), size):
            self._publish(whole[at : at + size], None)
        return first

    def _publish(self, payload: bytes, step: int | None) -> int:
        with self._lock:
            words = self._words
            if words is None:
                raise self._gone()
            if step is not None and step <= self._last_step:
                raise StepError(f"step {step} is not above {self._last_step}, the one before it")
            size = len(payload)
            # Nothing is called between these two, so that no other record, also none that a handler of a signal emits
            # in the middle of this one, has the same number. One that is left unfinished counts as lost.
            n = self._next
            self._next = n + 1
            if step is not None:
                self._last_step = step
            at = self._first + (n & self._mask) * self._stride
            try:
                words[at] = 2 * n + 1
                words[at + 1] = size | zlib.crc32(payload, zlib.crc32(_CRC_HEAD(2 * n + 2, size))) << 32
                words[at + 2 : at + 2 + self._count] = memoryview(payload).cast("Q")
                words[at] = 2 * n + 2
                words[128] = self._next  # position
            except ValueError:
                if self._words is not None:
                    raise
                raise self._gone() from None  # a handler has ended the ring
        return n

    def emitter(self, slow: Slow) -> Callable[..., None]:
        """Returns emit(step, values, time=None), which writes host values and gives everything else to slow.

        See `usp._encode.Emitter`, of which it is the bound method; its __self__ has the attribute `deferred`.
        """
        if self._writer is None:
            return Emitter(self, self.schema.fields, slow).emit
        return _native.Emitter(self._writer, self._fields, slow).emit

    def reader(self) -> Any:
        """Returns what takes records of device values from a queue to the ring; None without the extension."""
        return None if self._writer is None else _native.Reader(self._writer, self._fields)

    def handle(self) -> int:
        """Returns the number by which compiled code finds this ring. Raises RingError without the extension."""
        if self._writer is None:
            raise RingError(f"ring {self.path} has no native writer: {_why_not_native or 'native=False'}")
        return self._writer.handle

    def lend(self) -> tuple[int, int, int]:
        """Gives the writing of records to a device for good: from now on emit and its like raise ClosedError here.

        Returns the address of the mapped ring, its size, and that of its header; `position` and `last_step` are what
        the device begins with. Raises RingError without the extension, ClosedError, ForkedError.
        """
        self.handle()
        with self._lock:
            if self._words is None:
                raise self._gone()
            if self._lent:
                raise ClosedError(f"ring {self.path} is with a device already")
            self._next, self._last_step = self._writer.position, self._writer.last_step
            self._writer.close()
            self._lent = True
            here = ctypes.addressof(ctypes.c_char.from_buffer(self._files[0].map))
        return here, self._layout.file_size, self._layout.header_len

    def beat(self) -> None:
        """Shows the recorder that the producer, though it emits nothing, is not stuck. Optional."""
        if (words := self._words) is not None:
            words[rf.OFF_HEARTBEAT // 8] = (words[rf.OFF_HEARTBEAT // 8] + 1) & (1 << 64) - 1

    def consumer(self) -> Consumer:
        """Returns what the recorder last said; all zero after `close` and in a forked child."""
        view = None if self._forked else getattr(self, "_view", None)
        if view is None:
            return Consumer()
        try:
            with view.cast("Q") as words:
                return Consumer(*words[rf.OFF_CONSUMER // 8 : rf.OFF_CONSUMER // 8 + rf.CONSUMER_WORDS].tolist())
        except ValueError:  # closed meanwhile
            return Consumer()

    # Staged states

    @property
    def ended(self) -> bool:
        """Whether nothing goes in any more: finished, closed, or in a forked child."""
        return self._words is None

    def can_stage(self) -> bool:
        """Reports whether `stage` would find a free area now; counts nothing."""
        return self._words is not None and self._free_area() is not None

    def untaken(self) -> int | None:
        """The ticket of the oldest staged state that no recorder has taken yet; None if there is none."""
        at = rf.AREA_TICKET // 8
        return min((area.words[at] for area in self._areas if self._load(area) == rf.AREA_READY), default=None)

    def _free_area(self) -> _Area | None:
        for area in self._areas:
            if self._load(area) == rf.AREA_FREE:
                return area
        return None

    def stage(self, step: int, reason: int, size: int, fill: Callable[[memoryview], None]) -> bool:
        """Hands a state of size bytes to the recorder: fill writes it into the view that it is given and must not keep.

        The state is that after every record emitted so far. Never waits: returns False, and counts a drop, if every
        area is with the recorder or size is above the capacity. What fill raises is passed on, and the area is free.
        """
        try:
            area = self._take_area(size)
        except (ValueError, TypeError):
            if self._words is not None:
                raise
            area = None  # a handler of a signal has ended the ring
        if area is None:
            return False
        done = False
        try:
            content = area.view[rf.AREA_HEADER : rf.AREA_HEADER + size]
            fill(content)
            with self._stage_lock:
                if self._words is None:
                    return False  # ended meanwhile; the recorder gives an area that is being filled up
                crc = zlib.crc32(content) if self._staging_crc else 0
                at = rf.AREA_WORDS // 8
                for i, word in enumerate((
                    step, self.position, self._ticket, size,
                    self._layout.generation | reason << 32, int(self._staging_crc) | crc << 32,
                )):  # fmt: skip
                    area.words[at + i] = word
                self._ticket += 1
                done = True  # an interrupt from here on must not free what may be published
                self._store(area, rf.AREA_READY)
            return True
        finally:
            try:
                content.release()
            except (BufferError, UnboundLocalError):
                pass  # fill keeps views on it; they end it
            if not done and self._words is not None:
                self._store(area, rf.AREA_FREE)

    def _take_area(self, size: int) -> _Area | None:
        """Returns an area to fill; None, and a drop is counted, if there is none."""
        with self._stage_lock:
            if self._words is None:
                return None
            area = self._free_area() if 0 <= size <= self._layout.staging_capacity else None
            if area is None:
                self.drops += 1
                self._words[rf.OFF_DROPS // 8] = self.drops
            else:
                self._store(area, rf.AREA_FILLING)
            return area

    def _load(self, area: _Area) -> int:
        return area.words[rf.AREA_STATE // 8] if self._writer is None else _native.load(area.view, rf.AREA_STATE)

    def _store(self, area: _Area, state: int) -> None:
        if self._writer is None:
            area.words[rf.AREA_STATE // 8] = state
        else:
            _native.store(area.view, rf.AREA_STATE, state)

    # The end

    def finish(self, clean: bool) -> None:
        """Says that the producer ended, cleanly or not, and gives up the lock: the recorder drains the rest and removes
        the files. `consumer` still works. A second call does nothing."""
        # A signal handler that ends the run may have interrupted the very code that holds a lock: no waiting for ever.
        held = [lock for lock in (self._stage_lock, self._lock) if lock.acquire(timeout=1.0)]
        try:
            words = self._words
            if words is None:
                return
            self._words = None
            self._state = rf.STATE_CLOSED if clean else rf.STATE_FAILED
            if self._lent:
                self._next = words[rf.OFF_POSITION // 8]
            elif self._writer is not None:
                self._next, self._last_step = self._writer.position, self._writer.last_step
                self._writer.close()
            words[rf.OFF_POSITION // 8] = self._next  # an interrupted record counts, as lost
            words[rf.OFF_STATE // 8] = self._state
            words.release()
        finally:
            for lock in held:
                lock.release()
        for file in self._files:
            if file.fd >= 0:
                fcntl.flock(file.fd, fcntl.LOCK_UN)
                os.close(file.fd)
                file.fd = -1

    def close(self) -> None:
        """Ends a ring that is not finished as failed, and unmaps it. The files stay for the recorder."""
        if not self._forked:
            self.finish(False)
            self._release()
            for file in self._files:
                try:
                    file.map.close()
                except BufferError:
                    pass  # views that fill kept; the memory goes with them
        _rings.discard(self)

    def _release(self) -> None:
        """Lets go of all views."""
        if self._writer is not None:
            self._writer.close()
        if (words := getattr(self, "_words", None)) is not None:
            self._words = None
            words.release()
        if (view := getattr(self, "_view", None)) is not None:
            view.release()
        for area in self._areas:
            area.words.release()
            area.view.release()
        self._areas = []

    def forked(self) -> None:
        """In a child of os.fork: drops the descriptors without unlocking. From now on emit raises ForkedError.

        Called by a hook of this module; calling it again does nothing.
        """
        if self._forked:
            return
        self._forked = True
        self._words = None
        self._lock, self._stage_lock = threading.RLock(), threading.RLock()
        if self._writer is not None:
            self._writer.forked()
        for file in self._files:
            file.disown()
            # Its memory is not mapped here (MADV_DONTFORK), and something else may be at its address by the time this
            # object is collected: it must never be unmapped.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(file.map))

    def _gone(self) -> ClosedError:
        if self._forked:
            return ForkedError(f"ring {self.path} belongs to the process that this one was forked from")
        return ClosedError(f"ring {self.path} is closed")


def _choose(native: bool | None) -> bool:
    """Returns whether the extension writes; raises RingError if nothing can."""
    if sys.byteorder != "little":
        raise RingError("a ring needs a little-endian machine")
    if native is not False and _native is not None:
        return True
    if native:
        raise RingError(f"the extension usp._native is not here ({_why_not_native}): build it, or let native be None")
    if not _pure_possible():
        raise RingError(
            f"on {platform.machine()} pure Python cannot write a ring, since nothing orders its stores: the extension "
            f"usp._native is needed ({_why_not_native or 'native=False'})"
        )
    return False


_rings: weakref.WeakSet[Ring] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for ring in list(_rings):
        ring.forked()


if hasattr(mmap, "MADV_DONTFORK"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
