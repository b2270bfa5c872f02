"""The watch over a recorder process, with programs that do what a recorder may do; test_run.py has the real one."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from usp import _recorder
from usp._errors import RecorderError


@dataclass(frozen=True)
class State:
    """A consumer's words."""

    phase: int = 0
    pid: int = 0
    fault: int = 0
    stored: int = 0


class Ring:
    """What a recorder writes into a ring, for programs here that say it by making the file "attached"."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state = State()

    def consumer(self) -> State:
        return replace(self.state, phase=max(self.state.phase, int((self.path / "attached").exists())))


@pytest.fixture
def ring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ring:
    monkeypatch.chdir(tmp_path)
    return Ring(tmp_path)


def shell(script: str) -> list[str]:
    return ["/bin/sh", "-c", textwrap.dedent(script)]


def until(true: Callable[[], object], seconds: float = 20.0) -> None:
    """Waits until true() is, and fails if it does not become so."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def test_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "usp"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.delenv("USP_BIN", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    assert _recorder.find() is None
    monkeypatch.setenv("PATH", f"/nowhere:{tmp_path}")
    assert _recorder.find() == str(program)
    monkeypatch.setenv("USP_BIN", "/bin/sh")
    assert _recorder.find() == "/bin/sh"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("USP_BIN", "./usp")
    assert _recorder.find() == str(program), "a relative path must still be right after a chdir"
    monkeypatch.setenv("USP_BIN", str(tmp_path))
    with pytest.raises(RecorderError, match="USP_BIN is"):
        _recorder.find()


def test_summary_and_messages(ring: Ring) -> None:
    out = io.StringIO()
    script = """
        touch attached; echo one >&2; echo one >&2; printf two >&2
        echo '{"stored": 3}'
    """
    recorder = _recorder.Recorder(shell(script), ring.consumer, stderr=out)
    recorder.start()
    assert recorder.done.wait(20)
    assert recorder.summary == {"stored": 3} and recorder.error is None and recorder.starts == 1
    assert out.getvalue() == "one\ntwo\n"


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (
            "echo first >&2; echo 'recorder: mkdir x: no space left on device' >&2; exit 1",
            "mkdir x: no space left on device$",
        ),
        ("exit 7", "the recorder ended: exit code 7$"),
        ("kill -9 $$", "killed by signal 9$"),
        ("echo '{'", "without a summary$"),
    ],
)
def test_one_that_cannot_begin(script: str, says: str, ring: Ring) -> None:
    recorder = _recorder.Recorder(shell(script), ring.consumer, stderr=io.StringIO())
    with pytest.raises(RecorderError, match=says):
        recorder.start()
    assert recorder.starts == 1 and recorder.done.is_set()


def test_one_that_is_no_program(ring: Ring) -> None:
    with pytest.raises(RecorderError, match="cannot be started: .*No such file"):
        _recorder.Recorder(["/nonexistent/usp"], ring.consumer).start()


def test_one_that_does_not_get_on(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_recorder, "START_TIMEOUT", 1.0)
    recorder = _recorder.Recorder(shell("echo $$ > pid; exec sleep 60"), ring.consumer)
    with pytest.raises(RecorderError, match="did not open its run directory in 1 s"):
        recorder.start()
    assert recorder.done.is_set()
    with pytest.raises(ProcessLookupError):
        os.kill(int((ring.path / "pid").read_text() or "0") or 1 << 22, 0)


def test_one_that_dies_is_replaced_at_once_and_then_with_pauses(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_recorder, "FIRST_PAUSE", 0.5)
    out = io.StringIO()
    script = """
        touch attached; date +%s.%N >> starts; echo "time=$(date +%N) level=WARN msg=again" >&2
        test $(wc -l < starts) -lt 5 || { echo '{"ok": true}'; exit 0; }
        exit 1
    """
    recorder = _recorder.Recorder(shell(script), ring.consumer, stderr=out)
    recorder.start()
    assert recorder.done.wait(20)
    assert recorder.summary == {"ok": True} and recorder.starts == 5
    at = [float(line) for line in (ring.path / "starts").read_text().split()]
    waits = [b - a for a, b in zip(at, at[1:], strict=False)]
    assert waits[0] < 0.5, waits
    assert all(wait >= pause for wait, pause in zip(waits, (0, 0.5, 1, 2), strict=True)), waits
    assert out.getvalue().count("msg=again") == 1, "the same message over and over"


def test_release_starts_none_again(ring: Ring) -> None:
    recorder = _recorder.Recorder(shell("touch attached; echo $$ > pid; exec sleep 60"), ring.consumer)
    recorder.start()
    until(lambda: (ring.path / "pid").exists() and (ring.path / "pid").read_text().strip())
    recorder.release()
    assert not recorder.done.is_set()
    os.kill(int((ring.path / "pid").read_text()), signal.SIGKILL)
    assert recorder.done.wait(20)
    assert recorder.starts == 1 and "signal 9" in str(recorder.error)


def test_a_pipe_that_somebody_holds_delays_nothing(ring: Ring) -> None:
    recorder = _recorder.Recorder(shell("touch attached; sleep 30 & echo $! > held; echo '{}'"), ring.consumer)
    began = time.monotonic()
    recorder.start()
    assert recorder.done.wait(20) and recorder.summary == {}
    assert time.monotonic() - began < 10
    os.kill(int((ring.path / "held").read_text()), signal.SIGKILL)


def test_without_descriptors_of_processes(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_recorder, "end_of", lambda process: -1)
    recorder = _recorder.Recorder(shell("touch attached; echo '{}'"), ring.consumer)
    recorder.start()
    assert recorder.done.wait(20) and recorder.summary == {}


def test_own_session_and_surroundings(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C is for the loop, its timers may be late; where it was started, and with what, stays so for the next one too."""
    monkeypatch.setenv("USP_SOMETHING", "before")
    script = """
        touch attached; cut -d ' ' -f 6 /proc/$$/stat > sid; echo $$ > pid
        { read slack < /proc/self/timerslack_ns && echo $slack || echo untold; } > slack 2> /dev/null
        echo "$PWD $USP_SOMETHING $ADDED" >> where
        test $(wc -l < where) -ge 2 && echo '{}' && exit 0
        while ! test -e go; do sleep 0.01; done; exit 1
    """
    recorder = _recorder.Recorder(shell(script), ring.consumer, {"ADDED": "more"})
    recorder.start()
    until(lambda: (ring.path / "where").exists())
    monkeypatch.setenv("USP_SOMETHING", "after")
    os.chdir("/")
    (ring.path / "go").touch()
    assert recorder.done.wait(20) and recorder.starts == 2
    assert (ring.path / "where").read_text() == f"{ring.path} before more\n" * 2
    assert (ring.path / "sid").read_text() == (ring.path / "pid").read_text()
    told = os.path.exists("/proc/self/timerslack_ns")
    assert (ring.path / "slack").read_text() == (f"{_recorder.SLACK}\n" if told else "untold\n")


@pytest.mark.parametrize(("said", "told"), [
    (None, "asyncpreemptoff=1"), ("", "asyncpreemptoff=1"), ("gctrace=1", "gctrace=1,asyncpreemptoff=1"),
    ("asyncpreemptoff=0,gctrace=1", "asyncpreemptoff=0,gctrace=1"),
])  # fmt: skip
def test_is_not_interrupted_by_signals(
    ring: Ring, monkeypatch: pytest.MonkeyPatch, said: str | None, told: str
) -> None:
    monkeypatch.delenv("GODEBUG", raising=False)
    if said is not None:
        monkeypatch.setenv("GODEBUG", said)
    recorder = _recorder.Recorder(shell("touch attached; echo $GODEBUG > debug; echo '{}'"), ring.consumer)
    recorder.start()
    assert recorder.done.wait(20) and (ring.path / "debug").read_text() == f"{told}\n"
    assert os.environ.get("GODEBUG") == said


# Of jax, if another test has imported it.
@pytest.mark.filterwarnings("ignore:.*fork", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_forked_child_holds_nothing(ring: Ring) -> None:
    recorder = _recorder.Recorder(
        shell("touch attached; while ! test -e go; do sleep 0.01; done; echo '{}'"), ring.consumer
    )
    recorder.start()
    process = recorder._process
    assert process is not None and process.stderr is not None
    child = os.fork()
    if child == 0:
        recorder.forked()
        os._exit(0 if process.returncode == 0 and process.stderr.closed else 1)
    assert os.waitpid(child, 0)[1] == 0
    (ring.path / "go").touch()
    assert recorder.done.wait(20) and recorder.summary == {}


def test_wait_for_progress_only(ring: Ring) -> None:
    recorder = _recorder.Recorder(shell("touch attached; exec sleep 60"), ring.consumer)
    recorder.start()
    ends = time.monotonic() + 0.6

    def consumer() -> State:
        return State(phase=1, stored=int(min(time.monotonic(), ends) * 100), fault=28)

    began = time.monotonic()
    cause = _recorder.wait(recorder, _recorder.Patience(consumer, 0.3))
    assert cause is not None and "No space left on device" in cause
    assert 0.8 < time.monotonic() - began < 5, "it waits while there is progress, and then no longer than it may"
    recorder._abort()
    assert _recorder.wait(recorder, _recorder.Patience(lambda: State(phase=2), 9)) is None
    assert "signal 9" in str(_recorder.wait(recorder, _recorder.Patience(lambda: State(phase=1), 9)))


def test_wait_for_somebody_elses() -> None:
    assert _recorder.wait(None, _recorder.Patience(lambda: State(phase=2), 0.1)) is None
    assert _recorder.wait(None, _recorder.Patience(lambda: State(phase=1), 0.1)) == ""


def test_a_stopped_process_is_not_waited_for() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        assert not _recorder.stopped(process.pid) and not _recorder.stopped(0) and not _recorder.stopped(1 << 22)
        os.kill(process.pid, signal.SIGSTOP)
        until(lambda: _recorder.stopped(process.pid))
        patience = _recorder.Patience(lambda: State(phase=1, pid=process.pid), 60)
        began = time.monotonic()
        assert _recorder.wait(None, patience) == f"its process {process.pid} is stopped"
        assert time.monotonic() - began < 30
    finally:
        process.kill()
        process.wait()


def test_messages_are_passed_on_once_a_minute() -> None:
    now, out = [0.0], io.StringIO()
    said = _recorder.Messages(out, lambda: now[0])
    for at, text in [(0, b"a\nb\n"), (59, b"a\nb\n"), (61, b"a\n"), (62, b"\n  \nlast\xff")]:
        now[0] = at
        said.feed(text)
    assert said.end() == "last\ufffd" and said.end() == ""
    assert out.getvalue() == "a\nb\na\nlast\ufffd\n"
    out.close()
    said.feed(b"nobody hears this\n")
    said.feed(b"x" * 200_000)
    assert len(said.end()) == 200_000
