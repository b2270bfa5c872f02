"""Run: what a loop emits into.

A run that is ended by its with statement, by close() or at the end of the program is closed in order; by an exception,
a SIGTERM or being forgotten, it ends as failed. Either way everything that was emitted is in the ring, which outlives
the process, and the recorder stores it.
"""

from __future__ import annotations

import builtins
import copy
import os
import secrets
import threading
import time as clock
import warnings
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TextIO

from . import _lifecycle, _recorder, _settings
from ._encode import Emitter
from ._errors import (
    ClosedError, ConfigError, Error, FieldError, ForkedError, IncompleteWarning, NoRecorderWarning, StepError, Warning,
    attempt, raise_first, warn,
)  # fmt: skip
from ._ring import native_available
from ._schema import Field, Schema, resolve
from ._session import DEFAULT_CAPACITY, Plan, Session, Summary, on_device

if TYPE_CHECKING:
    import jax

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32
CADENCE, FINAL, EVENT = 1, 2, 3  # why a snapshot was taken


def new_id() -> str:
    """A run id such as 20261122T201833-9f3kq: the UTC second, and five random letters."""
    return clock.strftime("%Y%m%dT%H%M%S", clock.gmtime()) + "-" + "".join(secrets.choice(ALPHABET) for _ in range(5))


class Run:
    """One run: emit() hands over each step's record, snapshot() the state, and neither ever waits.

    with usp.Run(fields=usp.fields(loss="metric", rho="digest")) as run:
        for step in range(n):
            state, tele = train_step(state, batch)
            run.emit(step, tele)
            run.snapshot(step, state)
    """

    def __init__(
        self,
        config: str | os.PathLike[str] | None = None,
        *,
        fields: Sequence[Field],
        name: str = "python.v1",
        dir: str | os.PathLike[str] | None = None,
        state: Any = None,
        snapshot_capacity: int | None = None,
        staging_areas: int | None = None,
        save_interval_steps: int | None = None,
        max_to_keep: int | None = None,
        producer: Mapping[str, Any] | None = None,
        queue: int = 1024,
        record: bool | Literal["outside"] = True,
        stderr: TextIO | None = None,
        drain_timeout: float | None = None,
    ) -> None:
        """Begins the run, or, if the length or dtype of a field is not declared, prepares for the first emit.

        config: the settings file; None: usp.toml here, or in the user's configuration directory. The arguments below
            are stronger than it.
        fields: what usp.fields returns.
        name: of the schema.
        dir: of the run directories; default run.dir.
        state, snapshot_capacity: a pytree like those that will be saved, or its size in bytes: what a snapshot needs of
            shared memory. Default ring.staging_capacity, else the first state that snapshot() sees before the run has
            begun, else 1 MiB.
        staging_areas: snapshots that can be on their way; default ring.staging_areas, else 2. 0: no snapshots.
        save_interval_steps: steps between two snapshots; default snapshot.interval. 0: only forced ones.
        max_to_keep: newest snapshots that are kept; default snapshot.keep_last.
        producer: what the manifest is to say of the program, as JSON holds it; no secrets.
        queue: records with device values that can be on their way.
        record: True starts a recorder; "outside" leaves that to somebody else; False records nothing, leaves nothing.
        stderr: where the recorder's messages go; default sys.stderr.
        drain_timeout: seconds that the end waits for a recorder that makes no progress; default
            recorder.drain_timeout.

        Raises ConfigError for what is wrong with the settings, FieldError for what is wrong with the fields, RingError
        if the shared memory cannot be had, RecorderError if the recorder cannot begin (no rights, no space).
        """
        self._state: str = "closed"  # until everything below has worked
        self.id = new_id()
        self.summary: Summary | None = None
        self.schema: Schema | None = None
        self._lock = threading.RLock()
        self._session: Session | None = None
        self._broken: Error | None = None  # why it could not begin
        self._native: bool | None = None
        self._held: Held | None = None  # the first record, until the size of the state is known
        self._last_saved = -1
        self._declared = tuple(fields)
        self._name = name
        whole(queue, "queue", 1)
        binary = _recorder.find()
        set_ = _settings.load(config, binary)
        runs = os.path.abspath(os.fspath(dir)) if dir is not None else set_.runs
        self.dir = os.path.join(runs, self.id)
        interval = set_.snapshot_interval if save_interval_steps is None else save_interval_steps
        self._interval = whole(interval, "save_interval_steps", 0)
        env = {"USP_SNAPSHOT_KEEP_LAST": str(whole(max_to_keep, "max_to_keep", 0))} if max_to_keep is not None else {}
        areas = staging_areas if staging_areas is not None else set_.staging_areas or 2
        chosen = ["-c", os.path.abspath(config)] if config is not None else []
        command = [binary, *chosen, "-d", runs, "record"] if binary and record is True else None
        timeout = set_.drain_timeout if drain_timeout is None else float(drain_timeout)
        self._plan = Plan(
            run_id=self.id, runs=runs, ring_dir=set_.ring_dir, slots=set_.slots,
            staging_areas=whole(areas, "staging_areas", 0), staging_capacity=0,
            drain_timeout=timeout + set_.commit_wait,
            queue=queue, command=command, outside=record == "outside", keep=record is not False, env=env,
            producer=producer or {}, stderr=stderr,
        )  # fmt: skip
        self._capacity = snapshot_capacity if snapshot_capacity is not None else set_.staging_capacity
        if self._capacity is not None:
            whole(self._capacity, "snapshot_capacity", 0)
        elif state is not None:
            self._measure(state)
        if record is True and binary is None:
            no_recorder()
        if why := native_available():
            not_native(why)
        if all(f.len is not None and f.type is not None for f in self._declared):
            self.schema = Schema(name, self._declared)
            self._begin()
        self._state = "open"
        _lifecycle.watch(self)

    # Emitting

    def emit(self, step: int, values: Mapping[str, Any] | Any, time: int | None = None) -> None:
        """Hands over one step's record, and returns at once.

        step: not below 0, above the last one. values: one value for each declared field, by name: a number, or an array
        of its length, of the host or of jax; or what pack() made. time: Unix nanoseconds, default now.
        Raises StepError, FieldError, ClosedError; before the first record also what the constructor can raise, if the
        fields were not declared in full. Never waits; what the recorder cannot keep up with is counted in lost().
        """
        with self._lock:
            self._check_open()
            if self._session is None:
                if self.schema is None:
                    schema = self._resolve(values)
                    if self._capacity is None and self._plan.staging_areas and self._plan.keep:
                        # The next call says whether there are snapshots, and how large: a ring cannot grow.
                        self._held = Held(schema, step, values, clock.time_ns() if time is None else time)
                        self.schema = schema
                        return
                    self.schema = schema
                self._begin()
            assert self._session is not None
            self._session.emit(step, values, time)

    def emit_many(self, steps: Any, values: Mapping[str, Any], times: Any = None) -> None:
        """Hands over n records at once, such as the stacked outputs of lax.scan.

        steps: n integers, ascending. values: arrays with a leading axis of length n, of jax or of the host. times: n
        times in Unix nanoseconds, default now. Raises as emit().
        """
        with self._lock:
            self._check_open()
            if self._session is None:
                if self.schema is None:
                    self.schema = self._resolve({key: first(value) for key, value in values.items()})
                self._begin()
            assert self._session is not None
            self._session.queue().put_many(steps, values, times)

    def emit_traced(self, step: Any, values: Mapping[str, Any]) -> jax.Array:
        """Emits from inside a jitted function, scan or while_loop, without the host's part; returns a token to keep.

        Raises at tracing as emit().
        """
        from . import _xla

        session = self._traced(values)
        return _xla.emit_traced(session.ring, session.schema, step, values)

    def pack(self, values: Mapping[str, Any]) -> jax.Array:
        """Inside jit: one array of all fields, which emit() takes in place of a mapping: one copy leaves the device."""
        from . import _device

        return _device.pack(self._traced(values).schema, values)

    def _traced(self, values: Mapping[str, Any]) -> Session:
        with self._lock:
            self._check_open()
            if self._session is None:
                self.schema = self.schema or self._resolve(values)
                self._begin()
            assert self._session is not None
            return self._session

    # Snapshots

    def snapshot(self, step: int, state: Any, *, force: bool = False) -> bool:
        """Hands over the state after a step, if it is its turn (should_save) or forced. One copy, never a wait.

        state: a pytree of arrays. Returns False if it was not its turn, or if it was dropped because the last ones are
        still on their way, or is larger than the staging areas; see summary["snapshots_dropped"].
        """
        with self._lock:
            self._check_open()
            if self._session is None:
                if self._capacity is None:
                    self._measure(state)
                if self.schema is None:
                    return False  # there is no record yet that it could follow
                self._begin()
            if not force and not self.should_save(step):
                return False
            assert self._session is not None
            taken = self._session.save(step, EVENT if force else CADENCE, state)
            if taken:
                self._last_saved = step
            return taken

    def should_save(self, step: int) -> bool:
        """Whether snapshot() would take the state of this step: every save_interval_steps, and never a step twice."""
        return self._interval > 0 and step % self._interval == 0 and step > self._last_saved

    def latest_step(self) -> int | None:
        """The newest step of which a snapshot is complete; None if there is none."""
        from . import _snapshot

        step: int | None = _snapshot.latest_step(self.dir)
        return step

    def all_steps(self) -> list[int]:
        """The steps of all complete snapshots, ascending."""
        from . import _snapshot

        steps: list[int] = _snapshot.all_steps(self.dir)
        return steps

    def _measure(self, state: Any) -> None:
        from . import _snapshot

        self._capacity = _snapshot.size(state)

    # What is known

    @property
    def emitted(self) -> int:
        """Records emitted so far."""
        if self._session is not None:
            return int(self._session.ring.position)
        return int(self.summary["emitted"]) if self.summary else 0

    @property
    def dropped(self) -> int:
        """Records that were not emitted: the queue was full, their buffers were gone, or, of compiled programs, their
        steps were not above the last one."""
        if self._session is not None:
            return self._session.dropped()
        return int(self.summary["dropped"]) if self.summary else 0

    def lost(self) -> int:
        """Records that were emitted and will never be stored, as far as is known now."""
        if self._session is not None:
            return self._session.lost()
        return int(self.summary["lost"]) if self.summary else 0

    @property
    def native(self) -> bool | None:
        """Whether the extension writes the records, not the slower Python; None before the run has begun."""
        return self._native

    def __repr__(self) -> str:
        return f"<usp.Run {self.id} {self._state}, {self.emitted} records>"

    # Begin and end

    def _check_open(self) -> None:
        if self._state == "forked":
            raise ForkedError(
                f"run {self.id} belongs to the process that this one was forked from; make another one here"
            )
        if self._state != "open":
            raise ClosedError(f"run {self.id} has ended")
        if self._broken is not None:
            raise self._broken

    def _resolve(self, values: Any) -> Schema:
        if not isinstance(values, Mapping):
            raise FieldError(
                "the first record of fields that are not declared in full must be a mapping of their names"
            )
        return Schema(self._name, resolve(self._declared, values))

    def _begin(self) -> None:
        """Makes the ring and starts the recorder, and emits what was held."""
        from . import __version__

        assert self.schema is not None
        self._plan.staging_capacity = DEFAULT_CAPACITY if self._capacity is None else self._capacity
        try:
            self._session = Session(self._plan, self.schema, __version__)
        except Error as err:
            self._broken = err
            raise
        self._native = self._session.ring.native
        self.__dict__["emit"] = self._session.emit  # from here on a host record is one call of the emitter
        held, self._held = self._held, None
        if held is not None:
            held.emit(self._session)

    def close(self) -> Summary:
        """Ends the run, and waits until the recorder has stored everything, or makes no progress for drain_timeout.

        Then there is an IncompleteWarning, and what is not stored waits in the ring. Closing again returns the same.
        """
        return self._end(clean=True)

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end(clean=kind is None)

    def __del__(self) -> None:
        if getattr(self, "_state", "closed") == "open":
            warnings.warn(
                f"run {self.id} was never closed; it ends as failed", ResourceWarning, stacklevel=2, source=self
            )
            self._end(clean=False, linger=False)

    def _end(self, clean: bool, linger: bool = True) -> Summary:
        with self._lock:
            if self._state != "open":
                return self.summary or self._nothing(complete=False)
            incomplete: str | None = None
            refused: list[builtins.Warning] = []
            try:
                if self._held is not None and self._broken is None:
                    try:
                        self._begin()
                    except Error as err:
                        incomplete = f"run {self.id}: its only record is lost: {err}"
                self._state = "closed"
                self.__dict__.pop("emit", None)
                if self._session is not None:
                    self.summary = self._session.known()  # in case that the wait is interrupted
                    self.summary, incomplete, refused = self._session.end(clean, linger)
            finally:
                self._state = "closed"
                self._session = None
                _lifecycle.unwatch(self)
            if self.summary is None:  # nothing was ever emitted
                self.summary = self._nothing(complete=self._held is None)
        told = attempt(warn, incomplete, IncompleteWarning) if incomplete is not None and linger else None
        if told is not None:
            refused.insert(0, told)
        raise_first(refused)
        return self.summary

    def _nothing(self, complete: bool) -> Summary:
        """The summary of a run that never began."""
        return Summary(run_id=self.id, run_dir=self.dir, emitted=0, stored=0, lost=0, dropped=0, complete=complete)

    def _forked(self) -> None:
        self._state = "forked"
        self._lock = threading.RLock()
        self.__dict__.pop("emit", None)
        session, self._session = self._session, None
        if session is not None:
            session.forked()


class First:
    """Shape and dtype of one of the n values that are stacked in an array."""

    def __init__(self, stacked: Any) -> None:
        self.shape = tuple(stacked.shape[1:])
        self.dtype = stacked.dtype


def first(stacked: Any) -> Any:
    """Stands for the first of n values: an array by its shape, of a list its first element."""
    return First(stacked) if hasattr(stacked, "shape") and hasattr(stacked, "dtype") else stacked[0]


class Held:
    """The first record, checked, and as it is now: the loop may write into its host arrays before it is emitted."""

    def __init__(self, schema: Schema, step: int, values: Any, time: int) -> None:
        """Raises FieldError and StepError as emit() does."""
        self._payload: bytes | None = None
        self._step, self._time = step, time
        self._values: dict[str, Any] = {}
        Emitter(self, schema.fields, self._device).emit(step, dict(values), time)  # type: ignore[arg-type]
        for f in schema.fields if self._payload is None else ():
            if on_device(self._values[f.name]):
                from ._pack import check_leaf

                check_leaf(f, self._values[f.name].shape, self._values[f.name].dtype)

    def _publish(self, payload: bytes, step: int) -> None:
        self._payload = payload

    def _device(self, step: Any, values: Any, time: int | None) -> None:
        if isinstance(step, int) and not 0 <= step < 1 << 64:
            raise StepError(f"step {step}: want 0 to 2^64-1")
        self._values = {key: value if on_device(value) else copy.copy(value) for key, value in values.items()}

    def emit(self, session: Session) -> None:
        """Emits it, as the first one."""
        if self._payload is None:
            session.slow(self._step, self._values, self._time)
            return
        session.ring.advance(int(self._step))
        session.ring.emit(self._payload)


def whole(value: Any, name: str, least: int) -> int:
    """An argument that is a whole number. Raises ConfigError if it is not, or too small."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} is {value!r}; it is a whole number of {least} or more")
    return value


_told: set[str] = set()


def not_native(why: str) -> None:
    """Says once in a process that records are written by Python itself."""
    if "native" not in _told:
        _told.add("native")
        warn(
            f"the extension usp._native is not here ({why}): records are written in "
            "Python, which takes longer; a C compiler when the package is installed gives it",
            Warning,
        )


def no_recorder() -> None:
    """Says that nothing will be stored, and what to do about it."""
    warn(
        "there is no usp program to record: USP_BIN is not set, and PATH has no usp. What is emitted stays in shared "
        "memory, where the oldest records are overwritten. Get it with `go install ./cmd/usp` in usp's source; "
        "`usp record` then stores what is still there",
        NoRecorderWarning,
    )  # fmt: skip
