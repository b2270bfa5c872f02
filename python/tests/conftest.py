"""Fixtures of all tests: the recorder's binary, and directories that are gone afterwards."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")

VECTORS = Path(__file__).resolve().parents[2] / "testdata" / "vectors"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves the long tests out, aloud, unless TORTURE is set."""
    if os.environ.get("TORTURE"):
        return
    for item in items:
        if "torture" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="takes minutes; set TORTURE=1"))


@pytest.fixture(scope="session")
def usp_bin() -> str:
    """Path of the usp program; the test is skipped, aloud, where there is none."""
    found = os.environ.get("USP_BIN") or shutil.which("usp")
    if not found:
        pytest.skip("no usp program: set USP_BIN, or run make test")
    return found


@pytest.fixture
def ring_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A memory-backed directory of rings that nobody else uses; rings left in it are removed."""
    base = "/dev/shm" if os.path.isdir("/dev/shm") else None
    path = Path(tempfile.mkdtemp(prefix="usp-test-", dir=base))
    monkeypatch.setenv("USP_RING_DIR", str(path))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for run directories, and a signing key of its own."""
    monkeypatch.setenv("USP_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("USP_RECORDER_KEY_FILE", str(tmp_path / "signing.key"))
    return tmp_path / "runs"
