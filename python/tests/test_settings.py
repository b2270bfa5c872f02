"""Settings: usp's own answer and the one without usp agree, and what is wrong is said with its place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from usp import _settings
from usp._errors import ConfigError


@pytest.fixture(autouse=True)
def clear(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings but the test's."""
    for name in list(os.environ):
        if name.startswith("USP_") and name != "USP_BIN":
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)


FILE = """[run]
dir = "elsewhere"
[ring]
slots = 1024
staging_capacity = "3MiB"
[recorder]
drain_timeout = "1m2.5s"
[snapshot]
interval = 7
[anchor]
dir = "anchors"
"""


@pytest.mark.parametrize("asked", [True, False])
def test_file_variables_and_defaults(
    asked: bool, usp_bin: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = usp_bin if asked else None
    default = _settings.load(None, binary)
    assert default == _settings.Settings(
        runs=str(tmp_path / "runs"), ring_dir="", slots=65536, staging_areas=None, staging_capacity=None,
        drain_timeout=10.0, commit_wait=0.0, snapshot_interval=100,
    )  # fmt: skip
    (tmp_path / "other.toml").write_text(FILE)
    named = _settings.load("other.toml", binary)
    assert named == _settings.Settings(
        runs=str(tmp_path / "elsewhere"), ring_dir="", slots=1024, staging_areas=None, staging_capacity=3 << 20,
        drain_timeout=62.5, commit_wait=4.0, snapshot_interval=7,
    )  # fmt: skip
    (tmp_path / "usp.toml").write_text(FILE)
    monkeypatch.setenv("USP_RING_SLOTS", "2048")
    monkeypatch.setenv("USP_DIR", "/a")
    monkeypatch.setenv("USP_RING_STAGING_AREAS", "3")
    monkeypatch.setenv("USP_SNAPSHOT_INTERVAL", "")
    found = _settings.load(None, binary)
    assert (found.slots, found.runs, found.staging_areas, found.snapshot_interval) == (2048, "/a", 3, 7)
    monkeypatch.setenv("USP_RUN_DIR", "/b")
    assert _settings.load(None, binary).runs == "/b"


def test_defaults_are_those_of_usp(usp_bin: str) -> None:
    theirs = {key: value for key, (value, _) in _settings.ask(None, usp_bin).items()}
    assert {key: theirs[key] for key in _settings.DEFAULTS} == _settings.DEFAULTS


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[ring]\nslotz = 4\n", 'bad.toml:2:1: unknown key "slotz"'),
        ("[ring]\nslots = 5\n", "bad.toml:2:1: ring.slots: 5 is not a power of two"),
        ("[ring]\nslots = = 5\n", "bad.toml:2:9: "),
    ],
)
def test_what_is_wrong_is_said_in_the_words_of_usp(text: str, says: str, usp_bin: str, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(ConfigError) as err:
        _settings.load(tmp_path / "bad.toml", usp_bin)
    assert says in str(err.value)


def test_what_is_wrong_without_usp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bad.toml").write_text("[ring]\nslots = = 5\n")
    with pytest.raises(ConfigError, match=r"bad\.toml:2:9: Invalid value"):
        _settings.load("bad.toml", None)
    (tmp_path / "bad.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        _settings.load("bad.toml", None)
    with pytest.raises(ConfigError, match=r"configuration none\.toml: No such file"):
        _settings.load("none.toml", None)
    for name, value, key in [
        ("USP_RING_SLOTS", "many", "ring.slots"),
        ("USP_RING_STAGING_CAPACITY", "3 apples", "ring.staging_capacity"),
        ("USP_RECORDER_DRAIN_TIMEOUT", "10", "recorder.drain_timeout"),
        ("USP_RECORDER_DRAIN_TIMEOUT", "10sx", "recorder.drain_timeout"),
    ]:
        with monkeypatch.context() as patch, pytest.raises(ConfigError, match=key):
            patch.setenv(name, value)
            _settings.load(None, None)


def test_a_file_that_is_named_must_be_there(usp_bin: str) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml"):
        _settings.load("none.toml", usp_bin)


def test_a_program_that_is_not_usp() -> None:
    with pytest.raises(ConfigError, match="code 1"):
        _settings.load(None, "/bin/false")
    with pytest.raises(ConfigError, match="is this the usp"):
        _settings.load(None, "/bin/echo")


@pytest.mark.parametrize(
    ("text", "seconds"), [("50ms", 0.05), ("1m30s", 90.0), ("1h", 3600.0), ("0", 0.0), ("1.5s", 1.5), ("2us", 2e-6)]
)
def test_times(text: str, seconds: float) -> None:
    assert _settings.seconds(text, "k") == pytest.approx(seconds)


@pytest.mark.parametrize(("text", "size"), [("0B", 0), ("64MiB", 64 << 20), ("2 kB", 2000), ("7", 7), (12, 12)])
def test_sizes(text: str | int, size: int) -> None:
    assert _settings.size(text, "k") == size
