"""Telemetry, digests and snapshots of a step loop, to a recorder process that the loop never waits for."""

from __future__ import annotations

from typing import Any

from ._errors import (
    ClosedError,
    ConfigError,
    DroppedWarning,
    Error,
    FieldError,
    ForkedError,
    IncompleteWarning,
    NoRecorderWarning,
    RecorderError,
    RingError,
    SnapshotError,
    StepError,
    Warning,
)

__version__ = "0.1.0"

from ._run import Run
from ._schema import Field, field, fields
from ._session import Summary

__all__ = [
    "ClosedError", "ConfigError", "DroppedWarning", "Error", "Field", "FieldError", "ForkedError", "IncompleteWarning",
    "NoRecorderWarning", "RecorderError", "RingError", "Run", "SnapshotError", "StepError", "Summary", "Warning",
    "__version__", "all_steps", "field", "fields", "latest_step", "pack", "restore",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """What needs numpy or jax is loaded when it is first used."""
    if name in ("restore", "latest_step", "all_steps"):
        from . import _snapshot

        return getattr(_snapshot, name)
    if name == "pack":
        from ._device import pack

        return pack
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
