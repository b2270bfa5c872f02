"""A run that has begun: its ring, the recorder behind it, and what brings device values and states into it.

A session knows nothing of the Run that the user holds, so that one that is forgotten can be ended behind it.
"""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from ._environment import collect
from ._errors import ConfigError, DroppedWarning, attempt, warn
from ._recorder import LOOK, Patience, Recorder, wait
from ._ring import Ring, default_dir, prepare_dir, ring_path
from ._schema import Schema

if TYPE_CHECKING:
    from ._device import DeviceQueue
    from ._snapshot import Saver

HURRY = 2.0  # seconds for values on their way when the process is asked to end
STATUS = {1: "clean", 2: "crashed", 3: "failed"}  # how a generation ended, as the log has it
BEGINS = 1.0  # seconds in which a quarter of the ring may wait for a recorder that takes over, as in recorder/pace.go
AHEAD = 0.5  # seconds that the free part of a ring is to last while storage takes nothing, as in recorder/keeper.go
PACE_WINDOW = AHEAD / 2  # seconds over which a pace is taken
EASING = 16 * PACE_WINDOW  # seconds that a pace counts when it is over, less and less
DEFAULT_CAPACITY = 1 << 20  # bytes of a staging area, if the size of the state is not known when the ring is made


@dataclass
class Plan:
    """How a session is begun. Sizes in bytes, times in seconds."""

    run_id: str
    runs: str  # absolute directory of the run directories
    ring_dir: str
    slots: int
    staging_areas: int
    staging_capacity: int
    drain_timeout: float
    queue: int  # records with device values that may be on their way
    command: list[str] | None  # of the recorder, without the ring; None: none is started
    outside: bool  # somebody else starts it
    keep: bool  # the ring, for a recorder that comes later
    env: dict[str, str] = field(default_factory=dict)  # settings of the recorder that are not those of the file
    producer: Mapping[str, Any] = field(default_factory=dict)
    stderr: TextIO | None = None


class Ending(NamedTuple):
    """What came of the end of a session."""

    summary: Summary
    incomplete: str | None  # what to warn of; None: everything is stored
    refused: list[builtins.Warning]  # warnings on the way of which a filter made exceptions


class Summary(dict[str, Any]):
    """What a run amounted to. stored + lost = emitted.

    Keys: run_id, run_dir, generation, emitted, stored, lost, lost_storage (of those lost, because the disk did not
    take them), digests, snapshots (made durable), snapshots_unsaved (the disk did not take them), snapshots_dropped
    (all staging areas were busy), dropped (records with device values, or of compiled programs, that were never emitted), status ("clean",
    "failed", "crashed"), complete. Without the recorder's word the counts are as far as the ring tells, digests and
    status are missing, and complete is False.
    """

    @property
    def complete(self) -> bool:
        """Whether the recorder has stored or accounted for everything, and closed the run."""
        return bool(self["complete"])


def meta(plan: Plan, version: str) -> bytes:
    """The JSON in the ring's header that is meant for the recorder."""
    try:
        producer = {
            "program": "usp-python",
            "version": version,
            **({"settings": dict(plan.producer)} if plan.producer else {}),
        }
        text = json.dumps({"producer": producer, "environment": collect(version)}, allow_nan=False)
    except (TypeError, ValueError) as err:
        raise ConfigError(f"producer: {err}; want a mapping that JSON can hold") from err
    if len(text) > 1 << 16:
        raise ConfigError(f"producer: with the environment {len(text)} bytes of JSON, more than {1 << 16}")
    return text.encode()


class Session:
    """One generation of a run, seen from its producer."""

    def __init__(self, plan: Plan, schema: Schema, version: str) -> None:
        """Makes the ring and starts the recorder; returns when that has the run directory open.

        Raises RingError, RecorderError or ConfigError; then nothing is left behind.
        """
        self.plan, self.schema = plan, schema
        self._queue: DeviceQueue | None = None
        self._saver: Saver | None = None
        self._recorder: Recorder | None = None
        directory = plan.ring_dir or default_dir()
        prepare_dir(directory)
        self.ring = Ring(
            os.path.abspath(ring_path(directory, plan.run_id)), plan.run_id, schema, meta(plan, version),
            slots=plan.slots, staging_areas=plan.staging_areas if plan.staging_capacity else 0,
            staging_capacity=plan.staging_capacity if plan.staging_areas else 0,
        )  # fmt: skip
        self.path = self.ring.path
        self.emit: Callable[..., Any] = self.ring.emitter(self.slow)
        if plan.command is not None:
            recorder = Recorder(
                [*plan.command, self.path], self.ring.consumer, plan.env, plan.stderr,
                Starved(self.ring, plan.slots),
            )  # fmt: skip
            try:
                recorder.start()
            except BaseException:
                recorder.release()
                self._discard()
                raise
            self._recorder = recorder

    # Emitting

    def slow(self, step: int, values: Any, time: int | None = None) -> None:
        """Takes what the emitter does not: values of the device, and everything that is wrong."""
        if self._queue is None and not isinstance(values, dict) and isinstance(values, Mapping):
            self.emit(step, dict(values), time)  # the emitter knows dicts alone
            return
        self.queue().put(step, values, time)

    def queue(self) -> DeviceQueue:
        """The way of records with device values, made when the first one comes."""
        if self._queue is None:
            from ._device import DeviceQueue

            emitter = getattr(self.emit, "__self__", None)  # sends everything here while records wait
            self._queue = DeviceQueue(self.ring, self.schema, self.plan.queue, emitter)
        return self._queue

    # Snapshots

    def save(self, step: int, reason: int, state: Any) -> bool:
        """Hands a state over; False if it was dropped."""
        if self._saver is None:
            from ._snapshot import Saver

            self._saver = Saver(self.ring)
        return bool(self._saver.save(step, reason, state, self._written_so_far()))

    def _written_so_far(self) -> Callable[[], bool] | None:
        """Tells whether the records that are queued now are in the ring, as they have to be before a later state is."""
        queue = self._queue
        if queue is None or not queue.pending():
            return None
        upto = queue.records
        return lambda: queue.written + queue.dropped >= upto

    # What is known

    def lost(self) -> int:
        """Records that were emitted and will never be stored, as far as is known now."""
        consumer = self.ring.consumer()
        return int(consumer.lost) if consumer.phase else max(0, self.ring.position - self.plan.slots)

    def dropped(self) -> int:
        """Records with device values, or of compiled programs, that were never emitted."""
        queued = int(self._queue.dropped) if self._queue is not None else 0
        traced = sys.modules.get(f"{__package__}._xla")  # nothing was traced if it is not there
        return queued + (int(traced.counts(self.ring).late) if traced is not None else 0)

    # The end

    def end(self, clean: bool, linger: bool = True) -> Ending:
        """Ends the run and waits for its recorder while that makes sense; without linger not at all."""
        held = ""  # why a device still writes the ring, which then has to stay mapped
        try:
            timeout = self.plan.drain_timeout if linger else min(HURRY, self.plan.drain_timeout)
            traced = sys.modules.get(f"{__package__}._xla")
            late = traced is not None and not traced.settle(timeout)
            refused = [attempt(part.close, timeout) for part in (self._queue, self._saver) if part is not None]
            notes = []
            if late:
                notes.append(f"run {self.plan.run_id}: compiled programs that write records were not at their end "
                             f"after {timeout:g} s; what they write from now on is dropped")  # fmt: skip
            if traced is not None and (held := traced.release(self.ring, timeout)):
                notes.append(held)
            if traced is not None:
                refused.append(attempt(tell_late, traced.counts(self.ring).late))
            self.ring.finish(clean)
            cause = self._wait() if linger else "it was not waited for"
            summary, incomplete = self._summary(cause)
            incomplete = "; ".join([*notes, *([incomplete] if incomplete else [])]) or None
            return Ending(summary, incomplete, [err for err in refused if err is not None])
        finally:
            if self._recorder is not None:
                self._recorder.release()
            if not self.plan.keep:
                self._discard()
            elif not held:
                self.ring.close()

    def _wait(self) -> str | None:
        if self._recorder is None and not self.plan.outside:
            return "there is no recorder"
        return wait(self._recorder, Patience(self.ring.consumer, self.plan.drain_timeout))

    def known(self) -> Summary:
        """The summary as far as the ring tells."""
        consumer = self.ring.consumer()
        return Summary(
            run_id=self.plan.run_id, run_dir=os.path.join(self.plan.runs, self.plan.run_id), generation=0,
            emitted=int(self.ring.position), stored=int(consumer.stored), lost=self.lost(),
            lost_storage=int(consumer.lost_storage), snapshots=int(consumer.snapshots),
            snapshots_unsaved=int(consumer.unsaved), dropped=self.dropped(), complete=False,
            snapshots_dropped=int(self.ring.drops) + (self._saver.failed if self._saver is not None else 0),
        )  # fmt: skip

    def _summary(self, cause: str | None) -> tuple[Summary, str | None]:
        summary = self.known()
        if self._recorder is not None and self._recorder.summary is not None:
            summary |= self._recorder.summary
            summary["status"] = STATUS.get(summary.get("status", 0), "unknown")
        summary["complete"] = cause is None
        if cause is None or not self.plan.keep:
            return summary, None
        done, emitted = summary["stored"] + summary["lost"], summary["emitted"]
        text = f"run {self.plan.run_id}: {done} of {emitted} records are stored or accounted for"
        if emitted > done:
            text += f"; the rest waits in {self.path}"
        if self._recorder is None or self._recorder.done.is_set():
            text += f"; to store it: usp -d {shlex.quote(self.plan.runs)} record {shlex.quote(self.path)}"
        return summary, text + (f" ({cause})" if cause else "")

    def forked(self) -> None:
        """In a child of os.fork(): everything here is the parent's."""
        for part in (self._queue, self._saver, self._recorder, self.ring):
            if part is not None:
                with contextlib.suppress(Exception):  # the child must come up
                    part.forked()

    def _discard(self) -> None:
        """Removes the ring, with its staging areas: nobody is to record it."""
        with contextlib.suppress(OSError):
            self.ring.finish(False)
        self.ring.close()
        for name in [*(f"{self.path}.stage{i}" for i in range(self.plan.staging_areas)), self.path]:
            with contextlib.suppress(OSError):
                os.unlink(name)


class Starved:
    """Tells whether a recorder does not seem to notice that it is late, or has a state to take or a run to end."""

    def __init__(self, ring: Ring, slots: int) -> None:
        """The recorder does not keep up where 1/32 of the slots wait for it, a quarter of them in its first second."""
        self._ring = ring
        self._slots = slots
        self._began, self._position, self._free = 0.0, 0, 0  # the window, and what is to be free for the quickest of late
        self._pid, self._pid_since = 0, 0.0  # of the recorder that was looked at last
        self._ticket: int | None = None  # of the oldest staged state that nobody has taken
        self._since = 0.0  # when it was seen first

    def __call__(self, pid: int) -> bool:
        """Looks, for the recorder that is that process. A state is to wait for as long as it needs for ten looks."""
        try:
            ticket = self._ring.untaken()
            if ticket != self._ticket:
                self._ticket, self._since = ticket, time.monotonic()
            if ticket is not None and time.monotonic() - self._since >= LOOK:
                return True
            seen, position = self._ring.consumer(), self._ring.position
            kept = self._kept(position)
            troubled = seen.fault and seen.pid == pid  # not the word of one before it
            if pid != self._pid:
                self._pid, self._pid_since = pid, time.monotonic()
            begins = time.monotonic() - self._pid_since < BEGINS
            most = max(1, self._slots // (4 if begins else 32))
            most += kept if troubled else 0
            return self._ring.ended or position - seen.position >= most
        except ValueError:  # closed meanwhile
            return True

    def _kept(self, position: int) -> int:
        """How many records a recorder leaves in the ring while storage takes nothing, as in recorder/keeper.go."""
        now = time.monotonic()
        took = now - self._began
        free = int(min((position - self._position) * AHEAD / max(took, PACE_WINDOW), self._slots))
        if took >= PACE_WINDOW:
            eased = int(self._free * min(took, EASING) / EASING) + 1
            self._free = max(free, self._free - min(eased, self._free))
            self._began, self._position = now, position
        return min(self._slots // 4 * 3, self._slots - max(free, self._free))


def tell_late(n: int) -> None:
    """Warns of n records of compiled programs."""
    if n:
        those = "1 record" if n == 1 else f"{n} records"
        warn(f"{those} of compiled programs had no step above the last one; dropped and counted", DroppedWarning)


def on_device(value: Any) -> bool:
    """Whether a value is an array of jax, which may still be on its way."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(value, jax.Array)
