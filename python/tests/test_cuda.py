"""The CUDA part, as far as there is what it needs: a C compiler for what writes the slot, nvcc, a device."""

from __future__ import annotations

import ctypes
import importlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from devicehelp import F32_BITS, make_ring, records, widened
from ringreader import read

from usp._errors import ClosedError
from usp._ring import Ring, native_available
from usp._schema import Field

HERE = Path(__file__).parent
SOURCE = HERE.parent / "src" / "usp" / "cuda"

needs_native = pytest.mark.skipif(bool(native_available()), reason=f"no extension usp._native: {native_available()}")


@pytest.fixture(scope="module")
def lanes(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler: what a device does to a slot is not tested")
    out = tmp_path_factory.mktemp("lanes") / "lanes.so"
    subprocess.run([compiler, "-std=c11", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", f"-I{SOURCE}",
                    str(HERE / "cuda_lanes.c"), "-o", str(out)], check=True)  # fmt: skip
    library = ctypes.CDLL(str(out))
    library.lanes_size.restype = ctypes.c_uint64
    return library


class Lanes:
    """A ring that is lent, and the control block by which it is written."""

    def __init__(self, library: ctypes.CDLL, ring: Ring) -> None:
        self.library, self.ring = library, ring
        base, _, header_len = ring.lend()
        lay = ring._layout
        self.control = ctypes.create_string_buffer(library.lanes_size())
        u64 = ctypes.c_uint64
        library.lanes_init(
            self.control,
            ctypes.c_void_p(base),
            u64(header_len),
            u64(lay.slot_size),
            u64(lay.slots),
            u64(lay.payload_len),
        )

    def write(self, step: int, time: int, words: list[int]) -> bool:
        values = (ctypes.c_uint32 * (2 * len(words)))(*(half for w in words for half in (w & 0xFFFFFFFF, w >> 32)))
        return bool(self.library.lanes_write(self.control, ctypes.c_uint64(step), ctypes.c_uint64(time), values))

    def counts(self) -> tuple[int, int]:
        out = (ctypes.c_uint64 * 2)()
        self.library.lanes_counts(self.control, out)
        return out[0], out[1]


@needs_native
@pytest.mark.parametrize("length", [1, 2, 29, 30, 31, 62, 1000])
def test_a_device_writes_slots_as_the_format_says(lanes: ctypes.CDLL, ring_dir: Path, length: int) -> None:
    ring = make_ring(ring_dir, [Field("a", "metric", "f64", length)], slots=16, native=True)
    device = Lanes(lanes, ring)
    want = []
    for n in range(16):
        words = [(n * 0x9E3779B97F4A7C15 + i * 0xD1B54A32D192ED03) % 2**64 for i in range(length)]
        assert device.write(3 * n, n * 10**9, words)
        want.append((3 * n, n * 10**9, *words))
    assert records(ring) == want  # the reader checks each CRC by zlib
    assert ring.position == 16
    assert device.write(100, 0, [7] * length)  # over the oldest
    ring.finish(True)
    found = read(ring.path)
    assert (found.state, found.position, found.lost) == ("closed", 17, [(0, 1, "overrun")])
    assert found.records[-1][0] == 16
    ring.close()


@needs_native
def test_a_device_drops_and_counts(lanes: ctypes.CDLL, ring_dir: Path) -> None:
    ring = make_ring(ring_dir, [Field("a", "metric", "f64", 1)], native=True)
    device = Lanes(lanes, ring)
    assert [device.write(s, 0, [s]) for s in (5, 5, 4, 6)] == [True, False, False, True]
    lanes.lanes_close(device.control)  # as when a graph is replayed after the run's end
    assert not device.write(7, 0, [7])
    assert device.counts() == (2, 1)
    assert [r[0] for r in records(ring)] == [5, 6]
    ring.close()


@needs_native
def test_a_ring_that_is_lent_is_not_written_by_the_host(ring_dir: Path) -> None:
    ring = make_ring(ring_dir, [Field("a", "metric", "f64", 1)], native=True)
    emit = ring.emitter(lambda *a: None)
    emit(1, {"a": 1.0})
    ring.lend()
    assert (ring.position, ring.last_step) == (1, 1)
    for call in (lambda: emit(2, {"a": 2.0}), lambda: ring.emit(bytes(24)), lambda: ring.advance(2), ring.lend):
        with pytest.raises(ClosedError):
            call()
    assert ring.position == 1
    ring.finish(True)
    assert read(ring.path).position == 1
    ring.close()


def test_the_kernel_compiles(tmp_path: Path) -> None:
    nvcc = os.environ.get("NVCC") or shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc: the CUDA part is not compiled (set NVCC, and NVCC_FLAGS for its headers)")
    flags = os.environ.get("NVCC_FLAGS", "-arch=all-major").split()
    done = subprocess.run(
        [nvcc, "-std=c++17", "-O2", "-Xcompiler", "-fPIC,-Wall,-Werror", "-shared", "-cudart", "static", *flags,
         "-o", str(tmp_path / "libusp_cuda.so"), str(SOURCE / "usp_cuda.cu")], capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture
def built() -> Any:
    try:
        return importlib.import_module("usp.cuda")
    except ImportError as e:
        pytest.skip(f"the CUDA part is not built ({e}): make cuda, where nvcc is")


def test_the_handler_says_what_it_is(built: Any) -> None:
    from test_xla_abi import _Api, _Extension, _Frame, _Metadata, _Version

    handler = built._library.usp_cuda_handler
    handler.restype = ctypes.c_void_p
    for theirs, answer in [((0, 3), (0, 3)), ((0, 9), (0, 3)), ((0, 2), (-1, -1)), ((1, 3), (-1, -1))]:
        api = _Api(size=200, version=_Version(size=24, major=theirs[0], minor=theirs[1]))
        metadata = _Metadata(size=ctypes.sizeof(_Metadata))
        extension = _Extension(size=24, kind=1, metadata=ctypes.pointer(metadata))
        frame = _Frame(
            size=ctypes.sizeof(_Frame), extensions=ctypes.pointer(extension), api=ctypes.pointer(api), stage=3
        )
        assert handler(ctypes.byref(frame)) is None
        assert (metadata.version.major, metadata.version.minor) == answer
        assert metadata.traits == 1, "not said to be compatible with command buffers"


def _has_device() -> bool:
    jax = importlib.import_module("jax")
    try:
        return bool(jax.devices("cuda"))
    except RuntimeError:
        return False


def test_without_a_device_the_message_says_so(built: Any) -> None:
    pytest.importorskip("jax", reason="no jax here")
    if _has_device():
        pytest.skip("there is a CUDA device")
    from usp import _xla

    why = _xla.unavailable("cuda")
    assert why
    assert "refused" not in why


@pytest.fixture
def on_device(built: Any, ring_dir: Path) -> Iterator[Ring]:
    pytest.importorskip("jax", reason="no jax here")
    if not _has_device():
        pytest.skip("no CUDA device (or JAX_PLATFORMS=cpu): the kernel was not run")
    ring = make_ring(ring_dir, [Field("a", "metric", "f32", len(F32_BITS))], slots=1 << 12, native=True)
    yield ring
    ring.close()


@needs_native
def test_records_of_a_program_on_the_device(on_device: Ring) -> None:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from usp import _xla

    ring = on_device
    x = jnp.asarray(np.array(F32_BITS, np.uint32).view(np.float32))
    loop = jax.jit(lambda s, x: jax.lax.scan(
        lambda s, _: (_xla.emit_traced(ring, ring.schema, s, {"a": x}) + 1, None), s, None, length=1000)[0]
    )  # fmt: skip
    step = jax.jit(lambda s, x: _xla.emit_traced(ring, ring.schema, s, {"a": x}) + 1)
    s = loop(jnp.int32(0), x)
    for _ in range(100):  # often enough to be captured into a graph
        s = step(s, x)
    assert int(s) == 1100
    assert _xla.release(ring) == ""
    rows = records(ring)
    assert [r[0] for r in rows] == list(range(1100))
    assert {r[2:] for r in rows} == {tuple(widened(b, 8, 23) for b in F32_BITS)}
    assert [r[1] for r in rows] == sorted(r[1] for r in rows)
    step(s, x).block_until_ready()  # a program that outlives the ring
    assert ring.position == 1100
