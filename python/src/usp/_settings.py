"""The few settings that a producer needs, from where usp itself takes them: usp.toml and the USP_* variables.

Where there is a usp program it is asked (`usp config show --json`), so that both sides read the same file in the same
way, and what is wrong with it is said in its words, with file, line and column. Without one, the file is read here,
for these few keys alone.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ._errors import ConfigError

ASK_TIMEOUT = 30.0  # seconds for usp to read its settings; it takes milliseconds
COMMIT_WAIT = 4.0  # seconds that the end of a run may take for the anchor and the witness, as in recorder.Options

# The keys that are read here, with their defaults as in usp.
DEFAULTS: dict[str, Any] = {
    "run.dir": "runs",
    "ring.dir": "",
    "ring.slots": 1 << 16,
    "ring.staging_areas": 8,
    "ring.staging_capacity": "0B",
    "recorder.drain_timeout": "10s",
    "snapshot.interval": 100,
    "anchor.dir": "",
    "witness.url": "",
    "witness.timeout": "2s",
}

UNITS = {"": 1, "B": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3, "TB": 1000**4}
UNITS |= {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
DURATION = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")


@dataclass(frozen=True)
class Settings:
    """What a producer goes by. Sizes are in bytes, times in seconds."""

    runs: str  # absolute directory of the run directories
    ring_dir: str  # empty: the default
    slots: int  # of the ring, a power of two
    staging_areas: int | None  # None: not set anywhere
    staging_capacity: int | None  # None: not set anywhere
    drain_timeout: float  # how long the end of a run waits for a recorder that makes no progress
    commit_wait: float  # and how much longer because its last head is brought elsewhere
    snapshot_interval: int  # in steps; 0: only at the end


def load(config: str | os.PathLike[str] | None, binary: str | None) -> Settings:
    """Reads the settings in force: variables over the file over the defaults.

    config names the file; None is the one that usp would find. binary is the path of usp, None if there is none. Raises
    ConfigError if the file cannot be read or something in it is wrong.
    """
    values = ask(config, binary) if binary else read(config)
    origin = {key: where for key, (_, where) in values.items()}

    def value(key: str) -> Any:
        return values[key][0] if key in values else DEFAULTS[key]

    def given(key: str) -> bool:
        return origin.get(key, "default") != "default"

    capacity = size(value("ring.staging_capacity"), "ring.staging_capacity")
    brought = bool(value("anchor.dir") or value("witness.url"))
    return Settings(
        runs=os.path.abspath(text(value("run.dir"), "run.dir")),
        ring_dir=text(value("ring.dir"), "ring.dir"),
        slots=whole(value("ring.slots"), "ring.slots"),
        staging_areas=whole(value("ring.staging_areas"), "ring.staging_areas") if given("ring.staging_areas") else None,
        staging_capacity=capacity if capacity else None,
        drain_timeout=seconds(value("recorder.drain_timeout"), "recorder.drain_timeout"),
        commit_wait=max(COMMIT_WAIT, 2 * seconds(value("witness.timeout"), "witness.timeout")) if brought else 0.0,
        snapshot_interval=whole(value("snapshot.interval"), "snapshot.interval"),
    )


def ask(config: str | os.PathLike[str] | None, binary: str) -> dict[str, tuple[Any, str]]:
    """Has usp read its settings. Returns value and origin ("default", or what set it) of each key."""
    command = [binary, "--json", *(["-c", os.fspath(config)] if config is not None else []), "config", "show"]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=ASK_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as err:
        raise ConfigError(f"asking {binary} for its settings: {err}") from err
    if done.returncode != 0:
        raise ConfigError(message(done.stderr) or f"{binary} config show ended with code {done.returncode}")
    try:
        return {item["key"]: (item["value"], item["origin"]) for item in json.loads(done.stdout)}
    except (ValueError, KeyError, TypeError) as err:
        raise ConfigError(
            f"{binary} config show printed no list of settings; is this the usp of this package?"
        ) from err


def message(stderr: bytes) -> str:
    """What usp printed about its end: the message of the JSON line that it ends with, else its last line."""
    lines = stderr.decode("utf-8", "replace").strip().splitlines()
    for line in reversed(lines):
        try:
            return str(json.loads(line)["message"])
        except (ValueError, KeyError, TypeError):
            continue
    return lines[-1] if lines else ""


def read(config: str | os.PathLike[str] | None) -> dict[str, tuple[Any, str]]:
    """Reads the file and the variables without usp. Keys that are not of DEFAULTS are passed over."""
    values: dict[str, tuple[Any, str]] = {}
    path = find(config)
    if path is not None:
        for key, val in flatten(parse(path)):
            if key in DEFAULTS:
                values[key] = (val, path)
    for key in DEFAULTS:
        names = ["USP_" + key.upper().replace(".", "_")]
        if key == "run.dir":
            names.insert(0, "USP_DIR")
        for name in names:
            if os.environ.get(name):  # set to nothing is not set
                values[key] = (os.environ[name], name)
    return values


def find(config: str | os.PathLike[str] | None) -> str | None:
    """The file to read: the one that is named, or the first that exists of those that usp looks for."""
    named = os.fspath(config) if config is not None else os.environ.get("USP_CONFIG", "")
    if named:
        return named
    user = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return next((p for p in ("usp.toml", f"{user}/usp/config.toml", "/etc/usp/config.toml") if os.path.exists(p)), None)


def parse(path: str) -> dict[str, Any]:
    """The file's tables. Raises ConfigError with what is wrong and where."""
    try:
        return tomllib.loads(Path(path).read_bytes().decode("utf-8-sig"))
    except OSError as err:
        raise ConfigError(f"configuration {path}: {err.strerror}") from err
    except UnicodeDecodeError as err:
        raise ConfigError(f"configuration {path}: it is not UTF-8: {err.reason} at byte {err.start}") from err
    except tomllib.TOMLDecodeError as err:  # which ends in "(at line 2, column 9)"
        place = re.search(r"\(at line (\d+), column (\d+)\)", str(err))
        where = f"{path}:{place[1]}:{place[2]}" if place else path
        raise ConfigError(f"{where}: {str(err)[: place.start()].strip() if place else err}") from err


def flatten(tables: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The values of all tables by their dotted names."""
    return [
        (f"{section}.{key}", val)
        for section, table in tables.items()
        if isinstance(table, dict)
        for key, val in table.items()
    ]


def text(value: Any, key: str) -> str:
    """A setting that is a text."""
    if not isinstance(value, str):
        raise ConfigError(f"{key} is {value!r}; write a text in quotes")
    return value


def whole(value: Any, key: str) -> int:
    """A setting that is a whole number of 0 or more; variables hold it as text."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,19}", value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ConfigError(f"{key} is {value!r}; write a whole number such as {DEFAULTS.get(key, 1)}")
    return value


def size(value: Any, key: str) -> int:
    """A setting that is a number of bytes, such as "64MiB"."""
    match = re.fullmatch(r"([0-9]{1,19}) *([A-Za-z]*)", str(value))
    if match is None or match[2] not in UNITS or isinstance(value, bool):
        raise ConfigError(f'{key} is {value!r}; write a size such as "64MiB"')
    return int(match[1]) * UNITS[match[2]]


def seconds(value: Any, key: str) -> float:
    """A setting that is a time with its unit, such as "50ms" or "1m30s"; the result is in seconds."""
    if isinstance(value, str):
        parts = DURATION.findall(value)
        if parts and "".join(number + unit for number, unit in parts) == value:
            return sum(float(number) * SECONDS[unit] for number, unit in parts)
        if value == "0":
            return 0.0
    raise ConfigError(f'{key} is {value!r}; write a time with its unit, such as "50ms" or "1m30s"')
