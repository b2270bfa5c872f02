"""The interface to XLA: our declarations are those of jaxlib, and a runtime of another interface is refused."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from usp._ring import native_available

jax = pytest.importorskip("jax", reason="no jax here")

from usp import _xla  # noqa: E402

pytestmark = pytest.mark.skipif(bool(native_available()), reason=f"no extension usp._native: {native_available()}")


def test_our_declarations_are_those_of_jaxlib(tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler: the offsets in native/xla_abi.h are not held against jaxlib's header")
    here = Path(__file__).parent
    native = here.parent / "src" / "usp" / "native"
    done = subprocess.run(
        [compiler, "-std=c11", "-fsyntax-only", "-Wall", "-Werror", f"-I{jax.ffi.include_dir()}", f"-I{native}",
         str(here / "xla_abi_check.c")], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


class _Version(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("next", ctypes.c_void_p), ("major", ctypes.c_int), ("minor", ctypes.c_int)]


class _Api(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("next", ctypes.c_void_p), ("version", _Version)]


class _Metadata(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("version", _Version), ("traits", ctypes.c_uint32)]


class _Extension(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t), ("kind", ctypes.c_int), ("next", ctypes.c_void_p),
        ("metadata", ctypes.POINTER(_Metadata)),
    ]  # fmt: skip


class _Frame(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_size_t), ("extensions", ctypes.POINTER(_Extension)), ("api", ctypes.POINTER(_Api)),
        ("context", ctypes.c_void_p), ("stage", ctypes.c_int), ("rest", ctypes.c_uint64 * 64),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("theirs", "answer"), [((0, 3), (0, 3)), ((0, 9), (0, 3)), ((0, 2), (-1, -1)), ((1, 3), (-1, -1))]
)
def test_a_runtime_of_another_interface_is_refused(theirs: tuple[int, int], answer: tuple[int, int]) -> None:
    from usp import _native

    assert _xla.unavailable("cpu") == ""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    handler = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_Frame))(get(_native.xla_handler, None))
    api = _Api(size=200, version=_Version(size=24, major=theirs[0], minor=theirs[1]))
    metadata = _Metadata(size=ctypes.sizeof(_Metadata), traits=99)
    extension = _Extension(size=24, kind=1, metadata=ctypes.pointer(metadata))
    frame = _Frame(size=ctypes.sizeof(_Frame), extensions=ctypes.pointer(extension), api=ctypes.pointer(api), stage=3)
    assert handler(ctypes.byref(frame)) is None
    assert (metadata.version.major, metadata.version.minor, metadata.traits) == (*answer, 0)
    assert _native.xla_version() == ((0, 3), theirs)


def test_a_refusal_of_jaxlib_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_xla, "_outcome", {})

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("only version 7 here\nand more")

    monkeypatch.setattr(jax.ffi, "register_ffi_target", refuse)
    assert "jaxlib refused the call (interface 0.3 here" in _xla.unavailable("cpu")
    assert "only version 7 here" in _xla.unavailable("cpu")
