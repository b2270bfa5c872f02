"""Runs whose process or recorder dies, stops or has no room: nothing that was emitted is lost, and the loop goes on."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from runs import closed, line, program, until, usp, verified

import usp as api
from usp import _lifecycle, _recorder

FIELDS = api.fields(loss=("metric", 1), rho=("digest", 4))
LOOP = """
    fields = usp.fields(loss=("metric", 1), rho=("digest", 4))
    def values(step):
        return {"loss": step / 8, "rho": [0.25, step / 2, 0.5, -step / 4]}
"""


def values(step: int) -> dict[str, Any]:
    return {"loss": step / 8, "rho": [0.25, step / 2, 0.5, -step / 4]}


@pytest.fixture(autouse=True)
def quiet(usp_bin: str, ring_dir: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real program, and directories of the test's own."""
    monkeypatch.setenv("USP_BIN", usp_bin)
    monkeypatch.chdir(tmp_path)


def recorder_of(run: api.Run) -> int:
    """The process id of the run's recorder."""
    assert run._session is not None
    return int(until(lambda: run._session and run._session.ring.consumer().pid))


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and standard error of a program."""
    _, err = process.communicate(timeout=60)
    return process.returncode, err


# The process of the loop dies


def test_sigterm_ends_it_as_failed() -> None:
    code = (
        LOOP
        + """
    with usp.Run(fields=fields) as run:
        for step in range(10**9):
            run.emit(step, values(step))
            if step == 1000:
                print(run.dir, flush=True)
    """
    )
    process = program(code)
    run = Path(line(process))
    process.terminate()
    assert ended(process)[0] == -signal.SIGTERM, "whoever sent it sees that it worked"
    assert closed(run)
    found = verified(run, end="failed")
    assert found["stored"] > 1000 and found["emitted"] == found["stored"] + found["lost"]


def test_sigterm_in_the_middle_of_an_emit() -> None:
    """The handler runs between two instructions of the loop, which may hold the lock that the end needs."""
    process = program(
        LOOP
        + """
    import usp._ring
    usp._ring._native = None  # its lock is a word in C that no handler can come between
    with usp.Run(fields=fields) as run:
        run.emit(1, values(1))
        print(run.dir, flush=True)
        with run._session.ring._lock, run._session.ring._stage_lock:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
    """
    )
    run, began = Path(line(process)), time.monotonic()
    assert ended(process)[0] == -signal.SIGTERM and time.monotonic() - began < 20
    assert closed(run) and verified(run, end="failed")["stored"] == 1


def test_sigterm_belongs_to_a_program_that_handles_it() -> None:
    code = (
        LOOP
        + """
    def handler(number, frame):
        raise SystemExit(7)
    signal.signal(signal.SIGTERM, handler)
    with usp.Run(fields=fields) as run:
        run.emit(1, values(1))
        print(run.dir, flush=True)
        time.sleep(60)
    """
    )
    process = program(code)
    run = Path(line(process))
    process.terminate()
    assert ended(process)[0] == 7
    assert verified(run, end="failed")["stored"] == 1


def test_sigterm_is_put_back() -> None:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with api.Run(fields=FIELDS), api.Run(fields=FIELDS):
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_sigkill_loses_nothing_that_was_emitted() -> None:
    code = (
        LOOP
        + """
    with usp.Run(fields=fields) as run:
        for step in range(5000):
            run.emit(step, values(step))
        print(run.dir, flush=True)
        time.sleep(60)
    """
    )
    process = program(code)
    run = Path(line(process))
    process.kill()
    ended(process)
    assert closed(run)
    assert verified(run, end="crashed")["stored"] == 5000


def test_interrupt_in_the_terminal() -> None:
    """SIGINT goes to the whole foreground group, as Ctrl-C does; the recorder is not in it."""
    code = (
        LOOP
        + """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has it ignored
    with usp.Run(fields=fields) as run:
        step = 0
        while True:
            run.emit(step, values(step))
            step += 1
            if step == 1000:
                print(run.dir, flush=True)
    """
    )
    process = program(code, start_new_session=True)
    run = Path(line(process))
    os.killpg(process.pid, signal.SIGINT)
    code_, err = ended(process)
    assert code_ in (-signal.SIGINT, 130) and "KeyboardInterrupt" in err
    found = verified(run, end="failed")
    assert found["stored"] >= 1000 and found["lost"] <= 1


@pytest.mark.parametrize(
    ("last", "end", "rc"), [("", "clean", 0), ("raise ValueError('no')", "failed", 1), ("sys.exit(3)", "clean", 3)]
)
def test_a_program_that_does_not_close(last: str, end: str, rc: int) -> None:
    process = program(
        LOOP
        + f"""
    run = usp.Run(fields=fields)
    for step in range(30_000):
        run.emit(step, values(step))
    print(run.dir, flush=True)
    {last}
    """
    )
    run = line(process)
    assert ended(process)[0] == rc
    assert verified(run, end=end)["stored"] == 30_000, "it waited for that"


def test_one_record_held_at_the_end_of_the_program() -> None:
    process = program("""
    import warnings
    warnings.filterwarnings("ignore", "the extension usp._native is not here")
    run = usp.Run(fields=usp.fields(loss="metric"))
    run.emit(1, {"loss": 2.0})
    print(run.dir, flush=True)
    """)
    run = line(process)
    code, err = ended(process)
    assert code == 0 and err == ""
    assert verified(run)["stored"] == 1


def test_a_second_interrupt_does_not_wait(tmp_path: Path) -> None:
    process = program(
        LOOP
        + """
    run = usp.Run(fields=fields, drain_timeout=60)
    run.emit(1, values(1))
    pid = run._session.ring.consumer().pid
    usp._recorder.stopped = lambda pid: False  # or it would not be waited for at all
    os.kill(pid, signal.SIGSTOP)
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        run.close()
    except KeyboardInterrupt:
        summary = run.close()
        print(run.dir, pid, summary["emitted"], summary["complete"], flush=True)
    """
    )
    run, pid, emitted, complete = line(process).split()
    assert ended(process)[0] == 0 and (emitted, complete) == ("1", "False")
    os.kill(int(pid), signal.SIGCONT)
    assert closed(Path(run)) and verified(run)["stored"] == 1


def test_without_the_extension() -> None:
    process = program(
        LOOP
        + """
    import usp._ring, warnings
    usp._ring._native, usp._ring._why_not_native = None, "no compiler"
    with warnings.catch_warnings():
        warnings.simplefilter("error", usp.Warning)
        try:
            usp.Run(fields=fields)
            sys.exit("a filter made it an exception")
        except usp.Warning:
            assert not os.listdir(os.environ["USP_RING_DIR"]), "nothing was begun"
    usp._run._told.clear()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(2):
            with usp.Run(fields=fields) as run:
                assert run.native is False
                run.emit(1, values(1))
    (one,) = told
    assert issubclass(one.category, usp.Warning) and "no compiler" in str(one.message), one
    assert one.filename == "<string>", one.filename
    print(run.dir, flush=True)
    """
    )
    run = line(process)
    assert ended(process)[0] == 0 and verified(run)["stored"] == 1


def test_a_run_of_another_thread() -> None:
    process = program(
        LOOP
        + """
    import threading
    def work():
        with usp.Run(fields=fields) as run:
            run.emit(1, values(1))
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # only the main thread can set it
            print(run.dir, flush=True)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    """
    )
    run = line(process)
    assert ended(process)[0] == 0 and verified(run)["stored"] == 1


# Forks


def test_a_forked_child_lets_go() -> None:
    process = program(
        LOOP
        + """
    import warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads, in newer Pythons
    with usp.Run(fields=fields) as run, usp.Run(fields=usp.fields(loss="metric")) as lazy:
        emit = run.emit
        emit(1, values(1))
        lazy.emit(1, {"loss": 1.0})
        pipe = run._session._recorder._process.stderr
        child = os.fork()
        if child == 0:
            refused = 0
            for call in (emit, run.emit, lazy.emit):
                try:
                    call(2, values(2))
                except usp.ForkedError:
                    refused += 1
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
            assert pipe.closed  # or the recorder would block on it once its reader is gone
            with usp.Run(fields=fields) as own:  # it may have one of its own
                own.emit(1, values(1))
            print(own.dir, flush=True)
            sys.exit(40 + refused)  # through both __exit__ and atexit
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 43
        for step in range(2, 100):
            emit(step, values(step))
    print(run.dir, lazy.dir, flush=True)
    """
    )
    own = line(process)
    run, lazy = line(process).split()
    code, err = ended(process)
    assert code == 0, err
    assert verified(own)["stored"] == 1 and verified(run)["stored"] == 99 and verified(lazy)["stored"] == 1


def test_multiprocessing_by_fork() -> None:
    process = program(
        LOOP
        + """
    import multiprocessing, warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    def work(n):
        return n * n
    with usp.Run(fields=fields) as run:
        for step in range(100):
            run.emit(step, values(step))
        with multiprocessing.get_context("fork").Pool(2) as pool:  # which ends its workers with SIGTERM
            assert pool.map(work, range(5)) == [0, 1, 4, 9, 16]
        for step in range(100, 200):
            run.emit(step, values(step))
    print(run.dir, flush=True)
    """
    )
    run = line(process)
    code, err = ended(process)
    assert code == 0, err
    assert verified(run)["stored"] == 200


def test_sigterm_in_the_moment_of_a_fork() -> None:
    """A child that is ended before it has let go of the run dies of that, as one of a program without a run would, and
    takes nothing of the run with it. A pool ends its workers so, and waits for them."""
    process = program(
        LOOP
        + """
    import warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    armed, blocked = False, []
    def hold():  # the last before the fork
        blocked.append(signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, []))
    def strike():  # the first in the child
        if armed:
            os.kill(os.getpid(), signal.SIGTERM)
    os.register_at_fork(before=hold, after_in_child=strike)
    with usp.Run(fields=fields) as run:
        for step in range(100):
            run.emit(step, values(step))
        armed = True
        pid = os.fork()
        if pid == 0:
            os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        armed = False
        for step in range(100, 200):
            run.emit(step, values(step))
        child = os.fork()
        if child == 0:
            mask, handler = signal.pthread_sigmask(signal.SIG_BLOCK, []), signal.getsignal(signal.SIGTERM)
            os._exit(7 if signal.SIGTERM not in mask and handler is signal.SIG_DFL else 1)
        second = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(run.dir, code, second, blocked, flush=True)
    """
    )
    run, code, second, blocked = line(process).split(maxsplit=3)
    ending, err = ended(process)
    assert (ending, code, second, blocked) == (0, "-15", "7", "[True, True]"), err
    assert verified(run)["stored"] == 200


def test_sigterm_for_the_program_in_the_moment_of_a_fork() -> None:
    """It is held no longer than the fork takes; then the run ends as ever."""
    process = program(
        LOOP
        + """
    import warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    os.register_at_fork(before=lambda: os.kill(os.getpid(), signal.SIGTERM))
    with usp.Run(fields=fields) as run:
        print(run.dir, flush=True)
        for step in range(100):
            run.emit(step, values(step))
        if os.fork() == 0:
            os._exit(0)
        time.sleep(60)
    """
    )
    run = line(process)
    code, err = ended(process)
    assert code == -signal.SIGTERM, err
    assert closed(Path(run)) and verified(run, end="failed")["stored"] == 100


def test_forks_of_every_kind_leave_sigterm_alone() -> None:
    """In a child, in the program, in another thread and after the last run SIGTERM is blocked only where it was."""
    process = program(
        LOOP
        + """
    import subprocess, sys, threading, warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    TERM = signal.SIGTERM
    blocked = lambda: TERM in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    def fork(inside=blocked):
        pid = os.fork()
        if pid == 0:
            os._exit(inside())
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    held, nest = [], False
    def before():
        global nest
        held.append(blocked())
        if nest:
            nest = False
            held.append(fork())  # 0: not blocked in its child
            held.append(blocked())  # True: still held for the fork around it
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])  # is to stay so
    os.register_at_fork(before=before)
    with usp.Run(fields=fields) as run:
        run.emit(0, values(0))
        assert fork() == 0 and not blocked() and held == [True], held
        found = []
        thread = threading.Thread(target=lambda: found.extend([fork(), blocked()]))
        thread.start(); thread.join()
        assert found == [0, False] and not blocked(), found
        ask = "import signal; print(signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
        out = subprocess.run([sys.executable, "-c", ask], preexec_fn=lambda: None, capture_output=True, text=True)
        assert out.stdout == "False\\n" and not blocked(), out
        held.clear(); nest = True
        assert fork() == 0 and not blocked() and held == [True, True, 0, True], held
        assert signal.SIGUSR2 in signal.pthread_sigmask(signal.SIG_BLOCK, [])
        signal.pthread_sigmask(signal.SIG_BLOCK, [TERM])  # the program's own wish
        assert fork() == 1 and blocked()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [TERM])
    held.clear()
    assert fork() == 0 and held == [False], held
    print(run.dir, flush=True)
    """
    )
    run = line(process)
    code, err = ended(process)
    assert code == 0, err
    assert verified(run)["stored"] == 1


def test_an_interrupt_in_the_moment_of_a_fork() -> None:
    """What its handler raises is raised in a hook of the fork, where Python passes over it; SIGTERM is let go of."""
    process = program(
        LOOP
        + """
    import ctypes, functools, warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore it
    os.register_at_fork(before=functools.partial(ctypes.pythonapi.PyErr_SetInterruptEx, signal.SIGINT))
    blocked = lambda: signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with usp.Run(fields=fields) as run:
        run.emit(0, values(0))
        for step in range(1, 4):
            pid = os.fork()
            if pid == 0:
                os._exit(blocked())
            assert os.waitpid(pid, 0)[1] == 0 and not blocked(), step
            run.emit(step, values(step))
    print(run.dir, flush=True)
    """
    )
    run = line(process)
    code, err = ended(process)
    assert code == 0 and err.count("KeyboardInterrupt") == 3, err
    assert verified(run)["stored"] == 4


def test_an_interrupt_in_a_child_keeps_none_of_its_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Held:
        let_go = False

        def _end(self, clean: bool, linger: bool = True) -> None: ...

        def _forked(self) -> None:
            self.let_go = True
            raise KeyboardInterrupt

    held = [Held() for _ in range(3)]
    monkeypatch.setattr(_lifecycle, "_runs", weakref.WeakSet(held))
    with pytest.raises(KeyboardInterrupt):
        _lifecycle._in_child()
    assert [run.let_go for run in held] == [True] * 3


@pytest.mark.parametrize("blocks", [False, True])
def test_an_exception_while_sigterm_is_taken_hold_of(blocks: bool) -> None:
    """The call that blocks it also runs the handlers of signals that wait, and passes on what they raise."""
    block, was = signal.pthread_sigmask, signal.signal(signal.SIGTERM, _lifecycle._terminated)

    def interrupted(how: int, signals: Any) -> Any:
        before = block(how, signals)
        if bool(signals) == blocks:
            raise KeyboardInterrupt
        return before

    try:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(signal, "pthread_sigmask", interrupted)
            _lifecycle._hold()
        assert (signal.SIGTERM in block(signal.SIG_BLOCK, ())) == blocks
        _lifecycle._release()
        assert signal.SIGTERM not in block(signal.SIG_BLOCK, ())
    finally:
        block(signal.SIG_UNBLOCK, [signal.SIGTERM])
        signal.signal(signal.SIGTERM, was)


def test_a_child_that_lives_on_does_not_keep_the_ring() -> None:
    process = program(
        LOOP
        + """
    import warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    run = usp.Run(fields=fields)
    run.emit(1, values(1))
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print(run.dir, child, flush=True)
    time.sleep(60)
    """
    )
    run, child = line(process).split()
    try:
        process.kill()
        process.wait()
        assert closed(Path(run)), "the lock of the ring lives on in the child"
        assert verified(run, end="crashed")["stored"] == 1
    finally:
        os.kill(int(child), signal.SIGKILL)
        ended(process)


# The recorder dies or stops


def test_a_killed_recorder_is_replaced(capfd: pytest.CaptureFixture[str]) -> None:
    with api.Run(fields=FIELDS) as run:
        first = recorder_of(run)
        for step in range(20_000):
            run.emit(step, values(step))
            if step == 10_000:
                os.kill(first, signal.SIGKILL)
        second = until(lambda: (pid := recorder_of(run)) != first and pid)
        os.kill(second, signal.SIGKILL)
    found = verified(run.dir)
    assert (found["stored"], found["lost"]) == (20_000, 0)
    assert run.summary is not None and run.summary.complete


def session(pid: int) -> tuple[str, str]:
    """The group that a process's session is, and its priority. That of the system's first process has an empty file."""
    text = Path(f"/proc/{pid}/autogroup").read_text().split()
    return (text[0], text[2]) if text else ("", "0")


@pytest.fixture
def sessions() -> None:
    """Sessions are scheduled as groups; else the test is skipped."""
    try:
        groups = Path("/proc/sys/kernel/sched_autogroup_enabled").read_text().strip() == "1"
    except FileNotFoundError:
        groups = False
    if not groups:
        pytest.skip("NOT CHECKED: the recorder's priority; this system does not schedule sessions as groups")


@pytest.mark.usefixtures("sessions")
def test_the_recorder_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session of its own is also what lets the loop come first on a processor that both want. A recorder that others
    leave nothing to, as to a stopped one, gets what it needs from the loop's side."""
    monkeypatch.setenv("USP_RING_SLOTS", "1024")
    with api.Run(fields=FIELDS) as run:
        assert run._session is not None
        ring = run._session.ring
        run.emit(0, values(0))
        pid = recorder_of(run)
        until(lambda: ring.consumer().position == 1 and session(pid)[1] == "19")
        assert session(pid)[0] != session(os.getpid())[0]
        assert session(os.getpid())[1] != "19"
        os.kill(pid, signal.SIGSTOP)
        try:
            for step in range(1, 32):
                run.emit(step, values(step))
            time.sleep(2 * _recorder.LOOK)
            assert session(pid)[1] == "19", "31 of 1024 are no reason"
            run.emit(32, values(32))
            until(lambda: session(pid)[1] == "0")
        finally:
            os.kill(pid, signal.SIGCONT)
    assert run.summary is not None and run.summary.complete and run.summary["stored"] == 33


@pytest.mark.usefixtures("sessions")
def test_a_recorder_that_takes_over_gives_way_from_its_beginning_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USP_RING_SLOTS", "1024")
    with api.Run(fields=FIELDS) as run:
        first = recorder_of(run)
        until(lambda: session(first)[1] == "19")
        run.emit(0, values(0))
        time.sleep(0.2)  # who is not privileged may change a priority ten times a second
        os.kill(first, signal.SIGKILL)
        second = until(lambda: (pid := recorder_of(run)) != first and pid)
        until(lambda: session(second)[1] == "18")  # lowered by who started it
        os.kill(second, signal.SIGSTOP)
        try:
            for step in range(1, 500):
                run.emit(step, values(step))
            until(lambda: session(second)[1] == "0")
        finally:
            os.kill(second, signal.SIGCONT)


@pytest.mark.usefixtures("sessions")
def test_the_recorder_of_a_run_that_ends_is_raised() -> None:
    run = api.Run(fields=FIELDS)
    pid = recorder_of(run)
    until(lambda: session(pid)[1] == "19")
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.warns(api.IncompleteWarning):
            run.close()
        until(lambda: session(pid)[1] == "0")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert closed(Path(run.dir))


@pytest.mark.usefixtures("sessions")
def test_the_recorder_is_raised_for_a_state_that_it_does_not_take() -> None:
    with api.Run(fields=FIELDS) as run:
        run.emit(1, values(1))
        assert run.snapshot(1, {"x": 1.0}, force=True)
        pid = recorder_of(run)
        until(lambda: session(pid)[1] == "19")
        os.kill(pid, signal.SIGSTOP)
        try:
            run.emit(2, values(2))
            assert run.snapshot(2, {"x": 2.0}, force=True)
            until(lambda: session(pid)[1] == "0")
        finally:
            os.kill(pid, signal.SIGCONT)
    assert run.summary is not None and run.summary["snapshots"] == 2


def test_a_stopped_recorder_stops_nothing(ring_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USP_RING_SLOTS", "1024")
    run = api.Run(fields=FIELDS, drain_timeout=60)
    recorder = recorder_of(run)
    os.kill(recorder, signal.SIGSTOP)
    try:
        began = time.monotonic()
        for step in range(5000):
            run.emit(step, values(step))
        with pytest.warns(
            api.IncompleteWarning, match=f"5000 records are stored .*waits in .*process {recorder} is stopped"
        ):
            summary = run.close()
        assert time.monotonic() - began < 10 and not summary.complete and summary["emitted"] == 5000
        assert run.close() is summary
    finally:
        os.kill(recorder, signal.SIGCONT)
    assert closed(Path(run.dir))
    found = verified(run.dir)
    assert found["emitted"] == 5000 and found["stored"] >= 1000, "what the ring still had"
    until(lambda: not list(ring_dir.iterdir()))


def test_no_progress_is_waited_for_no_longer_than_allowed(
    usp_bin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A recorder that dies again and again: its successors cannot even begin."""
    flag = tmp_path / "broken"
    script = tmp_path / "usp"
    script.write_text(f'#!/bin/sh\ntest -e {flag} && echo "no luck today" >&2 && exit 3\nexec {usp_bin} "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("USP_BIN", str(script))
    run = api.Run(fields=FIELDS, drain_timeout=1.0)
    flag.touch()
    os.kill(recorder_of(run), signal.SIGKILL)
    run.emit(1, values(1))
    began = time.monotonic()
    with pytest.warns(api.IncompleteWarning, match=r"0 of 1 records .*no luck today"):
        run.close()
    assert 0.9 < time.monotonic() - began < 8
    flag.unlink()
    (ring,) = (Path(os.environ["USP_RING_DIR"])).glob("*.ring")
    assert usp("record", ring)["stored"] == 1
    verified(run.dir)


# Full disks


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    path = tmp_path / "small"
    path.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m,mode=0700", "tmpfs", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"no right to mount a small file system: {done.stderr.strip()}")
    yield path
    until(lambda: subprocess.run(["umount", str(path)], capture_output=True, check=False).returncode == 0)


def test_no_room_for_the_ring(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USP_RING_DIR", str(small))
    monkeypatch.setenv("USP_RING_SLOTS", "262144")
    with pytest.raises(api.RingError, match=f"{small} has no room"):
        api.Run(fields=FIELDS)
    lazy = api.Run(fields=api.fields(loss="metric"), snapshot_capacity=0)
    with pytest.raises(api.RingError, match="no room"):
        lazy.emit(1, {"loss": 1.0})
    lazy.close()
    held = api.Run(fields=api.fields(loss="metric"))
    held.emit(1, {"loss": 1.0})
    with pytest.warns(api.IncompleteWarning, match="its only record is lost: .* no room"):
        held.close()
    assert list(small.iterdir()) == []


def test_no_room_for_the_run_from_the_start(small: Path, ring_dir: Path) -> None:
    (small / "ballast").write_bytes(bytes((16 << 20) - 8192))
    with pytest.raises(api.RecorderError, match="no space left on device"):
        api.Run(fields=FIELDS, dir=small / "runs")
    assert list(ring_dir.iterdir()) == []


def fill(path: Path) -> None:
    """Leaves no room on the disk."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))


def test_a_disk_that_becomes_full(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RECORDER_SEGMENT_SIZE": "128KiB", "RING_SLOTS": "4096", "DIGEST_INTERVAL": "100"}.items():
        monkeypatch.setenv("USP_" + name, value)
    run = api.Run(fields=FIELDS, dir=small / "runs", drain_timeout=1.0)
    fill(small / "ballast")
    began = time.monotonic()
    for step in range(50_000):
        run.emit(step, values(step))
    assert time.monotonic() - began < 10
    with pytest.warns(api.IncompleteWarning, match="of 50000 records .*No space left on device"):
        summary = run.close()
    assert summary["emitted"] == 50_000
    (small / "ballast").unlink()
    assert closed(Path(run.dir))
    found = verified(run.dir)
    assert found["emitted"] == 50_000 and found["stored"] > 0


def test_a_warning_at_the_end_of_the_program() -> None:
    """No line of the program's is at work then: what is named is no line of this package's either."""
    left = """
    run = usp.Run(fields=fields, record="outside", drain_timeout=0.1)
    run.emit(1, values(1))
    """
    process = program(LOOP + left)
    code, err = ended(process)
    assert code == 0 and re.search(r"^<?sys>?:\d+: IncompleteWarning: run ", err, re.M) and "_lifecycle" not in err, err


def test_a_warning_that_is_an_error_breaks_nothing(ring_dir: Path) -> None:
    run = api.Run(fields=FIELDS, drain_timeout=60)
    recorder = recorder_of(run)
    os.kill(recorder, signal.SIGSTOP)
    try:
        run.emit(1, values(1))
        with warnings.catch_warnings():
            warnings.simplefilter("error", api.IncompleteWarning)
            with pytest.raises(api.IncompleteWarning):
                run.close()
        assert run.summary is not None and run.close() is run.summary
    finally:
        os.kill(recorder, signal.SIGCONT)
    assert closed(Path(run.dir)) and verified(run.dir)["stored"] == 1


def test_what_a_recorders_thread_starts_has_coarse_timers() -> None:
    """And what others start does not."""
    if not os.path.exists("/proc/self/timerslack_ns"):
        pytest.skip("NOT CHECKED: a recorder's timers; this system does not tell how late they may be")
    found: list[int] = []

    def started() -> int:
        slack = Path("/proc/self/timerslack_ns")
        return int(subprocess.run(["cat", slack], check=True, capture_output=True, text=True).stdout)

    def work() -> None:
        _recorder.coarse_timers()
        found.append(started())

    before = started()
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [_recorder.SLACK] and started() == before != _recorder.SLACK
