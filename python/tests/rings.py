"""What the tests of rings share."""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ringreader

from usp._ring import Ring, native_available
from usp._schema import Schema, fields

SCHEMA = Schema("test", fields(a=("metric", 1)))  # three words
RUN = "20261122T201833-9f3kq"


@pytest.fixture(params=["pure", "native"])
def native(request: pytest.FixtureRequest) -> bool:
    if request.param == "native" and (why := native_available()):
        pytest.skip(f"the extension is not here: {why}")
    return request.param == "native"


def payload(seq: int, words: int = 3) -> bytes:
    """Record seq of the vectors."""
    return struct.pack(
        f"<{words}Q", *(((seq + 1) * 0x9E3779B97F4A7C15 ^ i << 32) & (1 << 64) - 1 for i in range(words))
    )


def make(ring_dir: Path, native: bool, **more: Any) -> Ring:
    more = {"slots": 8, "schema": SCHEMA, "meta": b"{}", **more}
    return Ring(ring_dir / "a.ring", RUN, native=native, **more)


def locked(path: str | Path) -> bool:
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def whole(r: ringreader.Read, words: int = 3) -> None:
    """Each record is the one with its number, and all are accounted for."""
    for seq, got in r.records:
        assert got == payload(seq, words), f"record {seq}"
    assert len(r.records) + sum(to - first for first, to, _ in r.lost) == r.produced


def child(code: str, *args: str, **env: str) -> subprocess.Popen[str]:
    """Starts Python with the package, and waits until it says ready."""
    p = subprocess.Popen(
        [sys.executable, "-c", code, *args],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
    )
    assert p.stdout and p.stdout.readline() == "ready\n"
    return p
