"""Helpers of the tests that record real runs: what usp says of one, and programs that are killed while they record."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SRC = Path(__file__).resolve().parents[1] / "src"


def usp(*args: object, ok: tuple[int, ...] = (0,)) -> Any:
    """Runs a command of usp with --json, and returns what it printed."""
    done = subprocess.run(
        [os.environ["USP_BIN"], "--json", *map(str, args)], capture_output=True, text=True, check=False
    )
    assert done.returncode in ok, f"usp {args} ended with {done.returncode}: {done.stdout}{done.stderr}"
    if args[0] == "log":
        return [json.loads(line) for line in done.stdout.splitlines()]
    return json.loads(done.stdout)


def verified(run: object, end: str = "clean") -> dict[str, Any]:
    """Has usp verify the run, which must be intact and closed, and returns what it says of its only generation."""
    report = usp("verify", run)
    assert report["verdict"] == "ok" and report["completeness"]["closed"], report
    (generation,) = report["completeness"]["generations"]
    assert generation["end"] == end, report
    assert generation["stored"] + generation["lost"] == generation["emitted"], report
    return dict(generation)


def until(true: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Waits until true() is, returns what it returns, and fails if it does not become so."""
    deadline = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
    return value


def closed(run: Path, seconds: float = 30.0) -> bool:
    """Waits until a recorder has closed a run."""

    def look() -> bool:
        done = subprocess.run([os.environ["USP_BIN"], "--json", "verify", str(run)], capture_output=True, check=False)
        try:
            return bool(json.loads(done.stdout)["completeness"]["closed"])
        except (ValueError, KeyError):
            return False

    return bool(until(look, seconds))


def program(code: str, *args: str, **popen: Any) -> subprocess.Popen[str]:
    """A Python process that runs code, with usp imported; it writes what the test wants to know to standard output."""
    script = "import os, signal, sys, time, usp\n" + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-c", script, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(SRC)}, **popen,
    )  # fmt: skip


def line(process: subprocess.Popen[str]) -> str:
    """The next line that a program prints."""
    assert process.stdout is not None
    text = process.stdout.readline().strip()
    assert text, f"it ended with {process.wait()}: {process.stderr.read() if process.stderr else ''}"
    return text
