"""The environment holds what is listed, fits the format, and brings nothing up by itself."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from conftest import VECTORS
from hypothesis import given, settings
from hypothesis import strategies as st

from usp import _environment


def encode(found: dict[str, str]) -> str:
    """The text as in doc/format/environment.md."""
    return "".join(f"{key}={found[key]}\n" for key in sorted(found))


def probe(code: str, after: str = "", **env: str) -> dict[str, str]:
    """The environment that a new Python finds after running code; then it runs after."""
    script = f"{code}\nimport json, sys, usp._environment as e\nprint(json.dumps(e.collect('1.2.3')))\n{after}"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, text=True,
        env={"PYTHONPATH": ":".join(sys.path), "JAX_PLATFORMS": "cpu", "PATH": "/usr/bin:/bin", **env},
    )  # fmt: skip
    return dict(json.loads(done.stdout))


def test_bare_python() -> None:
    found = probe("", SECRET_TOKEN="hunter2", HOME="/srv/somebody", XLA_FLAGS="--xla_x=1")
    assert found["python.version"] == ".".join(map(str, sys.version_info[:3]))
    assert found["usp.version"] == "1.2.3"
    assert found["goarch"] in ("amd64", "arm64") and found["goos"] == "linux"
    assert int(found["cpu.count"]) > 0
    assert "hunter2" not in str(found) and "somebody" not in str(found)
    assert not [key for key in found if key.startswith(("jax", "xla", "numpy"))]


def test_nothing_is_imported() -> None:
    probe("import usp", after="assert not {'jax', 'jaxlib', 'numpy'} & set(sys.modules)")


def test_jax_without_a_backend() -> None:
    pytest.importorskip("jax")
    flags = "--xla_cpu_enable_fast_math=false --xla_dump_to=/srv/somebody/dump"
    still_down = "from jax._src import xla_bridge\nassert not xla_bridge.backends_are_initialized()"
    found = probe("import jax", still_down, XLA_FLAGS=flags, JAX_ENABLE_X64="1", JAX_DEFAULT_MATMUL_PRECISION="highest")
    import jax
    import jaxlib
    import numpy

    assert found["jax.version"] == jax.__version__ and found["jaxlib.version"] == jaxlib.__version__
    assert found["numpy.version"] == numpy.__version__
    assert found["jax.enable_x64"] == "true" and found["jax.default_matmul_precision"] == "highest"
    assert found["xla.flags"] == "--xla_cpu_enable_fast_math=false --xla_dump_to=..."
    assert "jax.backend" not in found


def test_jax_with_a_backend() -> None:
    pytest.importorskip("jax")
    found = probe("import jax; jax.numpy.zeros(1)")
    assert found["jax.backend"] == "cpu" and found["jax.device_kind"] == "cpu"
    assert found["jax.enable_x64"] == "false" and "jax.default_matmul_precision" not in found


def test_cuda_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    class Client:
        platform_version = "PJRT C API\ncuda 12090"

    class Device:
        platform, device_kind, client = "gpu", "Some Card", Client()

    class Bridge:
        backends_are_initialized = staticmethod(lambda: True)

    class Jax:
        devices = staticmethod(lambda: [Device()])

    monkeypatch.setitem(sys.modules, "jax._src.xla_bridge", Bridge)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "jax", Jax)  # type: ignore[arg-type]
    assert _environment.backend() == {"jax.backend": "gpu", "jax.device_kind": "Some Card", "cuda.version": "12090"}
    monkeypatch.delattr(Bridge, "backends_are_initialized")
    assert _environment.backend() == {}, "a jax of another make is no reason to fail"


def test_same_words_as_the_go_side(usp_bin: str) -> None:
    """On one machine, both sides must describe the processor alike, or compare reports a difference that is none."""
    from pathlib import Path

    source = (Path(__file__).parents[2] / "internal/environ/collect.go").read_text()
    order = [name for name in _environment.FEATURES.values() if f'{{"{name}", ' in source]
    assert order == list(_environment.FEATURES.values())
    assert [source.index(f'{{"{name}", ') for name in order] == sorted(source.index(f'{{"{name}", ') for name in order)


@pytest.mark.parametrize("case", json.loads((VECTORS / "environ" / "index.json").read_text())["whole"])
def test_vectors(case: dict[str, object]) -> None:
    values = case["map"]
    assert isinstance(values, dict)
    assert _environment.clean(values) == values
    assert encode(values) == case["text"]


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=70) | st.from_regex(r"\A[a-z][a-z0-9_.]{0,62}\Z"), st.text(max_size=700), max_size=300
    )
)
def test_whatever_comes_fits(found: dict[str, str]) -> None:
    kept = _environment.clean(found)
    text = encode(kept)
    assert len(kept) <= 256 and len(text) <= 16384
    assert all(" " <= c <= "~" or c == "\n" for c in text)
    for key, value in kept.items():
        assert _environment.KEY.fullmatch(key) and len(value) <= 512 and value == value.strip(" ") and "\n" not in value
    assert _environment.clean(kept) == kept


def test_what_is_made_fit() -> None:
    made = _environment.clean(
        {"a": " x\ty\u00e9\x85", "b": "v" * 600, "my.token": "t", "keys_of": "k", "keyed": "ok", "B": "no"}
    )
    assert made == {"a": "x y?", "b": "v" * 509 + "...", "keyed": "ok"}
    assert len(_environment.clean({f"k{i}": "" for i in range(300)})) == 256
    assert len(_environment.clean({f"k{i}": "x" * 500 for i in range(100)})) == 32
