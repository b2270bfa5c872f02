"""What a run is computed with, as far as it can make two runs over the same input differ.

The map goes into the log's OPEN entry, where `usp compare` reads it; doc/format/environment.md says what its keys mean.
Only what is listed here is ever looked at: never the whole environment, no path, no user, no name of the machine. No
module is imported and no accelerator is touched for it: what the program has not loaded has no part in its results.
"""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Mapping

MAX_KEYS, MAX_VALUE, MAX_SIZE = 256, 512, 16 << 10  # keys; bytes of a value; bytes of the whole text
KEY = re.compile(r"[a-z][a-z0-9_.]{0,62}")
# Words in a key that say that its value is none of a log's business.
SUSPECTS = frozenset(
    ("token", "tokens", "secret", "secrets", "password", "passwd", "passphrase", "credential", "credentials", "auth")
    + ("apikey", "key", "keys", "cookie", "session")
)
ARCHITECTURES = {"x86_64": "amd64", "AMD64": "amd64", "aarch64": "arm64", "arm64": "arm64"}  # as Go calls them

# Processor features that numerical code chooses by: the kernel's name of each, and the one in the map. The order is
# that of internal/environ, so that a run of the Go predictor and one of JAX on the same machine have the same text.
FEATURES = {
    "pni": "sse3", "ssse3": "ssse3", "sse4_1": "sse4.1", "sse4_2": "sse4.2", "avx": "avx", "avx2": "avx2",
    "f16c": "f16c", "fma": "fma", "bmi2": "bmi2", "avx_vnni": "avxvnni", "avx512f": "avx512f", "avx512cd": "avx512cd",
    "avx512bw": "avx512bw", "avx512dq": "avx512dq", "avx512vl": "avx512vl", "avx512ifma": "avx512ifma",
    "avx512_vnni": "avx512vnni", "avx512_bf16": "avx512bf16", "amx_tile": "amx-tile", "amx_int8": "amx-int8",
    "amx_bf16": "amx-bf16", "fp": "fp", "asimd": "asimd", "fphp": "fphp", "asimdhp": "asimdhp", "asimdrdm": "asimdrdm",
    "asimddp": "asimddp", "asimdfhm": "asimdfhm", "fcma": "fcma", "jscvt": "jscvt", "i8mm": "i8mm", "sve": "sve",
    "sve2": "sve2",
}  # fmt: skip


def collect(version: str) -> dict[str, str]:
    """Describes this process, for version of this package. What cannot be found out is left out."""
    info = cpuinfo()
    found = {
        "goos": sys.platform if sys.platform in ("linux", "darwin") else "",
        "goarch": ARCHITECTURES.get(platform.machine(), ""),
        "cpu.model": cpu_model(info),
        "cpu.count": str(cpu_count()),
        "cpu.features": cpu_features(info),
        "os.release": platform.release(),
        "python.version": platform.python_version(),
        "python.implementation": platform.python_implementation(),
        "usp.version": version,
        "numpy.version": module_version("numpy"),
    }
    if "jax" in sys.modules:
        found |= jax_settings()
    return clean({key: value for key, value in found.items() if value})


def cpuinfo() -> dict[str, str]:
    """What Linux says of its first processor; empty elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            beginning = file.read(64 << 10)
    except OSError:
        return {}
    first: dict[str, str] = {}
    for line in beginning.splitlines():
        key, colon, value = line.partition(":")
        if colon and not first.get(key.strip()):
            first[key.strip()] = value.strip()
    return first


def cpu_model(info: Mapping[str, str]) -> str:
    """The processor by its name, or, on arm64, by its numbers; in the words of internal/environ."""
    if info.get("model name"):
        numbers = "family {cpu family} model {model} stepping {stepping}"
        known = info.get("cpu family") and info.get("model")
        return info["model name"] + (f" ({numbers.format_map({'stepping': '', **info})})" if known else "")
    if info.get("CPU implementer"):
        part, variant, revision = (info.get("CPU " + word, "") for word in ("part", "variant", "revision"))
        return f"implementer {info['CPU implementer']} part {part} variant {variant} revision {revision}"
    return ""


def cpu_features(info: Mapping[str, str]) -> str:
    """The features that the kernel lets programs use, separated by spaces."""
    have = set((info.get("flags") or info.get("Features") or "").split())
    x86 = "flags" in info  # where "fp" and such mean nothing
    names = list(FEATURES)
    known = names[: names.index("fp")] if x86 else names[names.index("fp") :]
    return " ".join(FEATURES[name] for name in known if name in have)


def cpu_count() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0


def module_version(name: str) -> str:
    """The version of a module that the program has imported, or nothing."""
    return str(getattr(sys.modules.get(name), "__version__", "") or "")


def jax_settings() -> dict[str, str]:
    """Of a program that has imported jax: its versions and settings, and its backend if that is up already."""
    found = {
        "jax.version": module_version("jax"),
        "jaxlib.version": module_version("jaxlib"),
        "xla.flags": without_paths(os.environ.get("XLA_FLAGS", "")),
    }
    config = getattr(sys.modules["jax"], "config", None)
    if config is not None:
        found["jax.enable_x64"] = str(bool(getattr(config, "jax_enable_x64", False))).lower()
        found["jax.default_matmul_precision"] = str(getattr(config, "jax_default_matmul_precision", None) or "")
    return found | backend()


def backend() -> dict[str, str]:
    """Backend, kind of device and its software, if the program has brought them up."""
    # Nothing public tells whether there is a backend without making one. If these names go one day, so do the keys.
    bridge = sys.modules.get("jax._src.xla_bridge")
    try:
        if bridge is None or not bridge.backends_are_initialized():
            return {}
        device = sys.modules["jax"].devices()[0]
        found = {"jax.backend": str(device.platform), "jax.device_kind": str(device.device_kind)}
        software = str(getattr(device.client, "platform_version", ""))
        for name, key in (("cuda", "cuda.version"), ("cudnn", "cudnn.version"), ("rocm", "rocm.version")):
            number = re.search(rf"\b{name}[ :]+v?([0-9][0-9.]*)", software, re.IGNORECASE)
            if number is not None:
                found[key] = number[1]
        return found
    except Exception:  # noqa: BLE001 - a description is never a reason for a run not to begin
        return {}


def without_paths(flags: str) -> str:
    """XLA_FLAGS with "..." for every value that holds a path."""
    words = []
    for word in flags.split():
        name, equals, value = word.partition("=")
        if "/" in name or "\\" in name:
            words.append("...")
        else:
            words.append(f"{name}=..." if equals and ("/" in value or "\\" in value) else word)
    return " ".join(words)


def clean(found: Mapping[str, str]) -> dict[str, str]:
    """Makes a map fit the format: printable ASCII of at most 512 bytes, well-formed keys that name no secret.

    Control characters become spaces and others outside ASCII "?"; what is too long is cut and ends in "...". Keys
    beyond 256, or 16,384 bytes of text, are left out.
    """
    kept: dict[str, str] = {}
    total = 0
    for key in sorted(found):
        value = "".join(map(printable, found[key])).strip(" ")
        if len(value) > MAX_VALUE:
            value = value[: MAX_VALUE - 3] + "..."
        line = len(key) + len(value) + 2
        secret = not SUSPECTS.isdisjoint(re.split(r"[._]", key))
        if not KEY.fullmatch(key) or secret or len(kept) == MAX_KEYS or total + line > MAX_SIZE:
            continue
        kept[key] = value
        total += line
    return kept


def printable(char: str) -> str:
    """The character as it may stand in a value."""
    if char < " " or "\x7f" <= char <= "\x9f":
        return " "
    return char if char <= "~" else "?"
