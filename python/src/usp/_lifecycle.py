"""What happens to open runs when the process ends, is asked to end, or forks.

The end of the program closes them; one that ends by an exception that nobody caught ends them as failed, and so does
SIGTERM, if the program leaves that signal alone. A forked child lets go of them: they are its parent's. Until it has,
SIGTERM waits: Python forgets in a child which signals came to it before, and a pool that ends its workers by SIGTERM
would wait for one that never heard of it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import weakref
from types import FrameType
from typing import Protocol


class Open(Protocol):
    """What is needed of a run."""

    def _end(self, clean: bool, linger: bool = True) -> object: ...
    def _forked(self) -> None: ...


_runs: weakref.WeakSet[Open] = weakref.WeakSet()
_once = threading.Lock()
_registered = False


class Hold(threading.local):
    """SIGTERM, held by a thread while it forks. A handler of another signal may fork in the middle of a fork."""

    depth = 0  # forks that have begun and not ended
    ours = False  # it is blocked, and was not before the first of them


_fork = Hold()


def watch(run: Open) -> None:
    """Has the run ended or let go of with the process, until unwatch."""
    global _registered
    with _once:
        if not _registered:
            # Not at import: what is registered later runs earlier, so the runs end before jax takes its backends down.
            atexit.register(_exiting)
            # A signal that came in the fork has its handler run by the first hook of ours behind it, and what it raises
            # ends that hook alone.
            os.register_at_fork(after_in_parent=_interrupted, after_in_child=_interrupted)
            os.register_at_fork(before=_hold, after_in_parent=_release, after_in_child=_in_child)
            _registered = True
    _runs.add(run)
    if _main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminated)


def unwatch(run: Open) -> None:
    """The run has ended. After the last one SIGTERM is again what it was."""
    _runs.discard(run)
    if not _runs:
        _restore()


def _restore() -> None:
    # In another thread it cannot be put back; then the handler does what the system would have done.
    if _main_thread() and signal.getsignal(signal.SIGTERM) is _terminated:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _exiting() -> None:
    # An exception that nobody caught was printed by now; in an interactive session it was not the end.
    clean = hasattr(sys, "ps1") or getattr(sys, "last_value", None) is None
    for run in list(_runs):
        try:
            run._end(clean=clean)
        except Exception as err:  # noqa: BLE001 - the others have to be ended too
            print("; ".join([f"usp: {err}", *getattr(err, "__notes__", ())]), file=sys.stderr)


def _terminated(number: int, frame: FrameType | None) -> None:
    for run in list(_runs):
        with contextlib.suppress(Exception):
            run._end(clean=False, linger=False)
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _hold() -> None:
    _fork.depth += 1
    if _fork.depth == 1 and signal.getsignal(signal.SIGTERM) is _terminated:
        # Asked and remembered first: the call that blocks also runs the handlers of signals that wait, which may raise.
        _fork.ours = signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])


def _interrupted() -> None:
    """Nothing; see watch."""


def _release() -> None:
    # Nothing is called before the last line, so no handler is either. The hold of this fork may not have begun.
    if _fork.depth > 0:
        _fork.depth -= 1
    if _fork.depth == 0 and _fork.ours:
        _fork.ours = False
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


def _in_child() -> None:
    global _once
    interrupt: BaseException | None = None
    try:
        _once = threading.Lock()
        runs = list(_runs)
        _runs.clear()
        _restore()
        for run in runs:
            try:
                run._forked()
            except Exception:  # noqa: BLE001, S110 - the others have to be let go of too, and the child to come up
                pass
            except BaseException as err:  # noqa: BLE001
                interrupt = err
    finally:
        _fork.depth = 0  # what forks it was in the middle of are the parent's
        _release()
    if interrupt is not None:
        raise interrupt
