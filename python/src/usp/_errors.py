"""What can go wrong, one class for each thing a caller would handle differently, and how it is warned of."""

from __future__ import annotations

import builtins
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any


class Error(Exception):
    """Base of all exceptions of this package."""


class FieldError(Error, ValueError):
    """A value does not fit its field: missing, undeclared, of another shape or dtype; or a declaration is wrong."""


class StepError(Error, ValueError):
    """A step is not above the one before it."""


class RingError(Error, OSError):
    """The shared memory could not be made: no space, no rights, or the name is taken by another producer."""


class ClosedError(Error, RuntimeError):
    """The run has ended."""


class ForkedError(ClosedError):
    """The run belongs to the process that this one was forked from."""


class RecorderError(Error, RuntimeError):
    """The recorder could not begin, or ended before the run did."""


class ConfigError(Error, ValueError):
    """The settings are not valid; the message has file, line and column."""


class SnapshotError(Error, RuntimeError):
    """A snapshot cannot be restored: there is none, it is damaged, or it does not fit its destination."""


class Warning(UserWarning):  # noqa: A001 - always written usp.Warning
    """Base of all warnings of this package: something is not recorded, and the loop goes on."""


class DroppedWarning(Warning, RuntimeWarning):
    """Records with values of the device, or of compiled programs, are dropped and counted; it says how many and why."""


class NoRecorderWarning(Warning):
    """There is no usp program to record: what is emitted stays in the ring, as far as it holds it."""


class IncompleteWarning(Warning):
    """The run has ended and not everything is stored; the message says how much, and what stores the rest."""


_PACKAGE = os.path.dirname(__file__) + os.sep


def warn(text: str, category: type[Warning]) -> None:
    """Warns the user, at the line that called this package; a filter that makes it an exception has its way.

    At the end of the program no line did; then it is at a line of "sys", as the interpreter's own warnings are.
    """
    level = 1
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, category, stacklevel=level)


def attempt(act: Callable[..., object], *args: Any) -> builtins.Warning | None:
    """Does a part of the end. Returns the warning of which a filter made an exception: the rest has to end too."""
    try:
        act(*args)
    except builtins.Warning as err:
        return err
    return None


def raise_first(refused: Sequence[builtins.Warning]) -> None:
    """Raises the first of these, with notes of what the others say, if there are any."""
    for other in refused[1:]:
        refused[0].add_note(f"and {type(other).__name__}: {other}")
    if refused:
        raise refused[0]
