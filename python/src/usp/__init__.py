"""Telemetry, digests and snapshots of a step loop, to a recorder process that the loop never waits for."""

from __future__ import annotations

__version__ = "0.1.0"
