"""The recorder of a run: finds the usp program, starts it, starts it again when it dies, and waits for it at the end.

The recorder is a process of its own, in a session of its own: the terminal's Ctrl-C is for the loop, and the death of
the loop is not that of its recorder, which stores what is in the ring and closes the run. One daemon thread attends to
it. It sleeps in the kernel unless the recorder prints or ends, but for a look four times a second whether the recorder
needs more of the processors than it leaves itself; nothing that emits ever waits for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TextIO

from ._errors import RecorderError

START_TIMEOUT = 30.0  # seconds for a recorder to open its run directory
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds before a recorder that died is started again; the first time at once
REPEAT_AFTER = 60.0  # seconds after which a message that was passed on is passed on again
LOOK = 0.25  # seconds between two looks whether the recorder is to be raised
POLL = 0.002  # seconds between two looks at the ring while waiting
SLACK = 1_000_000  # ns by which a recorder's timers may be late, as in internal/priority
PR_SET_TIMERSLACK = 29  # of prctl(2)
ORDINARY, BEGINNING, LOWEST = b"0", b"18", b"19"  # priorities of a session, as in internal/priority
NO_PREEMPTIONS = "asyncpreemptoff="  # of Go's GODEBUG
ATTACHED, DONE = 1, 2  # the consumer's phases, as in doc/format/ring.md


class Consumer(Protocol):
    """What is needed of ring.consumer()."""

    @property
    def phase(self) -> int: ...
    @property
    def pid(self) -> int: ...
    @property
    def fault(self) -> int: ...


def find() -> str | None:
    """The usp program: USP_BIN, or usp in PATH; None if there is neither.

    Raises RecorderError if USP_BIN names something that cannot be run.
    """
    named = os.environ.get("USP_BIN")
    if not named:
        return shutil.which("usp")
    found = shutil.which(named)
    if found is None:
        raise RecorderError(f"USP_BIN is {named}, which is no program that can be run; correct it, or unset it")
    return os.path.abspath(found)


class Recorder:
    """Keeps one recorder process running until one has closed the run's generation."""

    def __init__(
        self,
        command: Sequence[str],
        consumer: Callable[[], Consumer],
        env: Mapping[str, str] | None = None,
        stderr: TextIO | None = None,
        starved: Callable[[int], bool] | None = None,
    ) -> None:
        """command is run with env added to this process's environment, here and as it is now, however often it is run.

        consumer tells how far it is, starved whether the process with that id has something to do that it does not seem
        to notice. What it prints goes to stderr, or to what sys.stderr is at that time.
        """
        self.summary: dict[str, Any] | None = None  # what the recorder said when it had closed the generation
        self.error: RecorderError | None = None  # why the last recorder ended
        self.starts = 0
        self.done = threading.Event()  # set when no recorder will be started any more and none of ours is running
        self._command = list(command)
        self._consumer: Callable[[], Consumer] | None = consumer
        self._starved = starved if starved is not None and sessions() else None
        self._env = unsignalled({**os.environ, **(env or {}), "USP_RECORDER_CHILD": "1"})  # its summary is for this
        self._cwd = os.getcwd()
        self._said = Messages(stderr)
        self._quit = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Launches the first recorder and returns when it has attached.

        Raises RecorderError, with the last line that it printed, if it ends instead or takes longer than 30 s.
        """
        consumer = self._consumer
        assert consumer is not None
        threading.Thread(target=self._supervise, name="usp-recorder", daemon=True).start()
        deadline = time.monotonic() + START_TIMEOUT
        try:
            while not self.done.wait(POLL):
                if consumer().phase != 0:
                    return
                if time.monotonic() > deadline:
                    self._abort()
                    raise RecorderError(f"the recorder did not open its run directory in {START_TIMEOUT:g} s")
        except KeyboardInterrupt:
            self._abort()
            raise
        if self.summary is None:
            raise self.error or RecorderError("the recorder ended")

    def release(self) -> None:
        """Starts no recorder any more. One that is running goes on, and what it prints is still passed on."""
        self._quit.set()
        self._consumer = None
        if self._starved is not None:
            self._starved = lambda pid: True

    def forked(self) -> None:
        """In a child of os.fork(): lets go of the recorder, which is the parent's."""
        self._quit.set()
        process = self._process
        if process is not None:
            process.returncode = 0  # it is no child of this process: never wait for it
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()  # or the recorder could block on a pipe that nobody reads once the parent is gone

    def _abort(self) -> None:
        """Ends the recorder of a run that does not begin."""
        self.release()
        for _ in range(100):
            process = self._process  # which the thread may be about to start
            if process is not None:
                process.kill()
            if self.done.wait(0.05):
                return

    def _supervise(self) -> None:
        """The thread: one recorder after the other."""
        pause = 0.0
        try:
            while not self._quit.is_set():
                began = time.monotonic()
                self.error = self._once()
                if self.error is None or not self._again():
                    return
                if time.monotonic() - began > LONGEST_PAUSE:
                    pause = 0.0
                if self._quit.wait(pause):
                    return
                pause = min(max(2 * pause, FIRST_PAUSE), LONGEST_PAUSE)
        except Exception as err:  # noqa: BLE001 - such as a thread or process that cannot be had while Python ends
            self.error = RecorderError(f"the recorder cannot be started: {err}")
        finally:
            self.done.set()

    def _again(self) -> bool:
        """Whether a recorder that ended is to be replaced: the first one only if it had begun to record."""
        consumer = self._consumer
        if consumer is None:
            return False
        phase = consumer().phase
        return phase == ATTACHED or phase != DONE and self.starts > 1

    def _once(self) -> RecorderError | None:
        """Runs a recorder to its end. Returns None if it closed the generation, else why it ended."""
        self.starts += 1
        coarse_timers()
        try:
            process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
                env=self._env, cwd=self._cwd, start_new_session=True,
            )  # fmt: skip
        except OSError as err:
            return RecorderError(f"the recorder cannot be started: {err}")
        self._process = process
        starved = self._starved
        if self.starts > 1 and starved is not None and not starved(process.pid):  # the loop is at work
            lower_session(process.pid)
        with process:
            printed, last = self._attend(process)
        self._process = None
        if process.returncode == 0:
            try:
                self.summary = dict(json.loads(printed))
                return None
            except (ValueError, TypeError):
                last = last or "it ended without a summary"
        return RecorderError(f"the recorder ended: {last or describe(process.returncode)}")

    def _attend(self, process: subprocess.Popen[bytes]) -> tuple[bytes, str]:
        """Passes on what the process prints until it has ended. Returns its standard output and its last line."""
        assert process.stdout is not None and process.stderr is not None
        out, err = process.stdout.fileno(), process.stderr.fileno()
        for fd in (out, err):
            os.set_blocking(fd, False)
        # The end of the process ends this, not that of its pipes: a child forked at the wrong moment may hold them.
        ended = end_of(process)
        poller = select.poll()
        for fd in (out, err, ended):
            if fd >= 0:
                poller.register(fd, select.POLLIN)
        printed = bytearray()
        try:
            while True:
                if (starved := self._starved) is not None and starved(process.pid):
                    raise_session(process.pid)
                ready = [fd for fd, _ in poller.poll(1000 * LOOK if starved is not None or ended < 0 else None)]
                over = ended in ready or ended < 0 and process.poll() is not None
                for fd, keep in ((out, printed.extend), (err, self._said.feed)):
                    if (over or fd in ready) and not drain(fd, keep):
                        with_closed(poller, fd)
                if over:
                    return bytes(printed), self._said.end()
        finally:
            if ended >= 0:
                os.close(ended)


def end_of(process: subprocess.Popen[bytes]) -> int:
    """A descriptor that is readable when the process has ended; -1 where the system has none."""
    try:
        return os.pidfd_open(process.pid) if hasattr(os, "pidfd_open") else -1
    except OSError:
        return -1


def coarse_timers() -> None:
    """Lets the timers of this thread, and of the processes that it starts, be late by SLACK.

    Then the system wakes a processor, which the loop may be computing on, once for several of them.
    """
    with contextlib.suppress(Exception):  # where there is no such call, they are on time
        ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, ctypes.c_ulong(SLACK), 0, 0, 0)


def unsignalled(env: dict[str, str]) -> dict[str, str]:
    """env for a recorder whose runtime does not interrupt it by signals, as in internal/priority; what env says stays."""
    debug = env.get("GODEBUG", "")
    if any(setting.startswith(NO_PREEMPTIONS) for setting in debug.split(",")):
        return env
    return {**env, "GODEBUG": f"{debug},{NO_PREEMPTIONS}1".removeprefix(",")}


def sessions() -> bool:
    """Whether the system schedules sessions as groups that have a priority."""
    try:
        with open("/proc/sys/kernel/sched_autogroup_enabled", "rb") as file:
            return file.read(1) == b"1"
    except OSError:
        return False


def lower_session(pid: int) -> None:
    """Has the session of a recorder give way from its start, by which it knows that it may be raised."""
    change_session(pid, (ORDINARY,), BEGINNING)


def raise_session(pid: int) -> None:
    """Gives the session of a recorder that has the lowest priority, or that of its beginning, the ordinary one.

    A recorder lowers it itself while it keeps up. Then others may leave it too little to notice that it does not any more.
    """
    change_session(pid, (LOWEST, BEGINNING), ORDINARY)


def change_session(pid: int, when: tuple[bytes, ...], nice: bytes) -> None:
    """Gives the session of a process a priority, if it has one of these."""
    path = f"/proc/{pid}/autogroup"
    with contextlib.suppress(OSError):  # the system takes only so many a second; what raises looks again
        with open(path, "rb") as file:
            has = file.read().split()[-1:]
        if has and has[0] in when:
            with open(path, "wb", buffering=0) as file:
                file.write(nice)


def drain(fd: int, keep: Callable[[bytes], Any]) -> bool:
    """Reads what is there; False if there will be no more."""
    while True:
        try:
            chunk = os.read(fd, 1 << 16)
        except BlockingIOError:
            return True
        if not chunk:
            return False
        keep(chunk)


def with_closed(poller: select.poll, fd: int) -> None:
    """Takes a pipe that has ended out of the poll, where it would be ready for ever."""
    with contextlib.suppress(KeyError):  # it was taken out before
        poller.unregister(fd)


def describe(code: int) -> str:
    """How a process ended that said nothing."""
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


class Messages:
    """Passes on a recorder's messages, line by line, but none again that was passed on in the last minute.

    A recorder that cannot begin is started again every few seconds, and says the same each time.
    """

    def __init__(self, file: TextIO | None, now: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._now = now
        self._open = b""  # a line whose end has not come
        self._last = ""
        self._passed: dict[str, float] = {}

    def feed(self, chunk: bytes) -> None:
        """Takes what was read, and passes on its whole lines."""
        *lines, self._open = (self._open + chunk).split(b"\n")
        for line in lines:
            self._pass(line)
        if len(self._open) > 1 << 16:
            self.feed(b"\n")

    def end(self) -> str:
        """The process has ended: returns its last line, without surrounding white space."""
        if self._open:
            self.feed(b"\n")
        last, self._last = self._last, ""
        return last

    def _pass(self, raw: bytes) -> None:
        line = raw.decode("utf-8", "replace").rstrip()
        if not line:
            return
        self._last = line.strip()
        # Of a structured message the time is new each time.
        key = line.split(" ", 1)[-1] if line.startswith("time=") else line
        now = self._now()
        if now - self._passed.get(key, -REPEAT_AFTER) < REPEAT_AFTER:
            return
        self._passed.pop(key, None)
        self._passed[key] = now
        while len(self._passed) > 64:
            del self._passed[next(iter(self._passed))]
        self._write(line + "\n")

    def _write(self, line: str) -> None:
        file = self._file or sys.stderr
        try:
            if file is sys.__stderr__ and file is not None:
                # Not through its buffer: a thread that holds its lock while Python ends would bring the process down.
                os.write(file.fileno(), line.encode(errors="replace"))
            elif file is not None:
                file.write(line)
        except (OSError, ValueError):
            pass  # nobody is there to read it


class Patience:
    """How long waiting for a recorder makes sense: while it makes progress, and for so many seconds without any.

    But not while its process is stopped: that would be waiting for a person.
    """

    def __init__(self, consumer: Callable[[], Consumer], timeout: float) -> None:
        self._consumer = consumer
        self._timeout = timeout
        self.last = consumer()
        self._since = time.monotonic()

    def left(self) -> bool:
        """Looks at the recorder's counters; False when waiting makes no more sense."""
        now, current = time.monotonic(), self._consumer()
        if current != self.last:
            self.last, self._since = current, now
        return not stopped(current.pid) and now - self._since < self._timeout

    def cause(self) -> str:
        """What holds the recorder up, as far as the ring and the system tell; empty if they do not."""
        if stopped(self.last.pid):
            return f"its process {self.last.pid} is stopped"
        if self.last.fault:
            return (
                f"its storage takes nothing: {os.strerror(self.last.fault)}; it goes on when that is over, or after "
                "some time closes the run without what it holds"
            )
        return ""


def wait(recorder: Recorder | None, patience: Patience) -> str | None:
    """Returns when the recorder has closed the generation, or when waiting makes no more sense.

    Without a recorder of ours, somebody else's is waited for. The result is None if everything is stored, else why not,
    empty if that is not known.
    """
    if recorder is None:
        while patience.left():
            if patience.last.phase == DONE:
                return None
            time.sleep(POLL)
        return None if patience.last.phase == DONE else patience.cause()
    while not recorder.done.wait(POLL):
        if not patience.left():
            return patience.cause() or str(recorder.error or "")
    patience.left()  # looks once more: a recorder that is killed when it has finished leaves no summary
    return None if recorder.summary is not None or patience.last.phase == DONE else str(recorder.error or "")


def stopped(pid: int) -> bool:
    """Whether a process is stopped: by SIGSTOP, or by a debugger."""
    if pid <= 0:
        return False
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            status = file.read()
    except OSError:
        return False
    # The state follows the command's name, which is in parentheses and may hold any byte.
    return status[status.rfind(b")") + 2 :][:1] in (b"T", b"t")
