"""The CUDA part, as far as there is what it needs: a C compiler for what writes the slot, nvcc, a device."""

from __future__ import annotations

import ctypes
import importlib
import os
import shutil
import struct
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


def compiled(to: Path, source: str, compilers: list[str], flags: list[str], skipped: str) -> ctypes.CDLL:
    """A program of the tests as a library. Skips the test, with these words, where there is none of the compilers."""
    compiler = next(filter(None, map(shutil.which, compilers)), None)
    if compiler is None:
        pytest.skip(skipped)
    out = to / f"{source}.so"
    common = ["-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", f"-I{SOURCE}"]
    subprocess.run([compiler, *flags, *common, str(HERE / source), "-o", str(out)], check=True)
    return ctypes.CDLL(str(out))


@pytest.fixture(scope="module")
def lanes(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    skipped = "no C compiler: what a device does to a slot is not tested"
    to = tmp_path_factory.mktemp("lanes")
    library = compiled(to, "cuda_lanes.c", ["cc", "gcc", "clang"], ["-std=c11"], skipped)
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


@pytest.fixture(scope="module")
def warps(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    skipped = "no C++ compiler: the kernel is not run on the CPU"
    to = tmp_path_factory.mktemp("warps")
    library = compiled(to, "cuda_warp.cpp", ["c++", "g++", "clang++"], ["-std=c++17", "-pthread"], skipped)
    library.warp_control_size.restype = ctypes.c_uint64
    return library


class Warps:
    """A ring that is lent, and the kernel that writes it, in warps of coroutines."""

    CLOCK = 10**18  # ns, of the Unix time at which the device's is 0

    def __init__(self, library: ctypes.CDLL, ring: Ring) -> None:
        self.library, self.ring, self.launches = library, ring, 0
        base, _, header_len = ring.lend()
        lay = ring._layout
        self.control = ctypes.create_string_buffer(library.warp_control_size())
        u64 = ctypes.c_uint64
        library.warp_init(
            self.control, ctypes.c_void_p(base), u64(header_len), u64(lay.slot_size), u64(lay.slots),
            u64(lay.payload_len), ctypes.c_int64(self.CLOCK),
        )  # fmt: skip

    def launch(self, step: Any, kind: int, words: list[int], control: bool = True, in_place: bool = False) -> int:
        """Returns the step that is passed on. A reader may be deceived at no moment."""
        values = (ctypes.c_uint32 * (2 * len(words)))(*(half for w in words for half in (w & 0xFFFFFFFF, w >> 32)))
        out = (type(step) * 2)(step if in_place else 0, 85)
        self.launches += 1
        deceived = self.library.warp_run(
            self.control if control else None, out if in_place else ctypes.byref(step), kind, values, out,
            ctypes.c_uint64(self.launches * 0x9E3779B97F4A7C15 % 2**64),
        )  # fmt: skip
        assert deceived >= 0, "the lanes do not meet, or do not end"
        assert deceived == 0, "a slot was said to be complete and was not"
        assert out[1] == 85, "something was written behind the step"
        return int(out[0])

    def counts(self) -> tuple[int, int, int]:
        """Records, those late, those after the end."""
        out = (ctypes.c_uint64 * 3)()
        self.library.warp_counts(self.control, out)
        return out[0], out[1], out[2]


S32, S64, U32, U64 = 4, 5, 8, 9  # XLA's numbers of types


@needs_native
@pytest.mark.parametrize("length", [1, 29, 30, 31, 62, 500])
def test_the_kernel_writes_records(warps: ctypes.CDLL, ring_dir: Path, length: int) -> None:
    ring = make_ring(ring_dir, [Field("a", "metric", "f64", length)], slots=16, native=True)
    device = Warps(warps, ring)
    want = []
    for n in range(40):  # over the oldest, too
        words = [(n * 0x9E3779B97F4A7C15 + i * 0xD1B54A32D192ED03) % 2**64 for i in range(length)]
        assert device.launch(ctypes.c_uint64(3 * n), U64, words) == 3 * n
        want.append((3 * n, words))
    found = read(ring.path)  # which checks each CRC by zlib
    assert found.lost == [(0, 24, "overrun")]
    rows = [struct.unpack(f"<{length + 2}Q", payload) for _, payload in found.records]
    assert [(r[0], list(r[2:])) for r in rows] == want[-16:]
    times = [r[1] for r in rows]
    assert times == sorted(set(times)) and Warps.CLOCK < times[0] < Warps.CLOCK + 10**9
    assert (ring.position, device.counts()) == (40, (40, 0, 0))
    ring.close()


@needs_native
def test_the_kernel_passes_every_step_on(warps: ctypes.CDLL, ring_dir: Path) -> None:
    """Whatever type it has, and whether a record is written or not."""
    ring = make_ring(ring_dir, [Field("a", "metric", "f64", 1)], native=True)
    device = Warps(warps, ring)
    steps = [
        (ctypes.c_int32(7), S32), (ctypes.c_int32(-1), S32), (ctypes.c_uint32(2**32 - 1), U32),
        (ctypes.c_int64(2**40), S64), (ctypes.c_int64(-(2**40)), S64), (ctypes.c_uint64(2**63 + 5), U64),
        (ctypes.c_uint64(9), U64),
    ]  # fmt: skip
    for step, kind in steps:
        assert device.launch(step, kind, [1]) == step.value
        assert device.launch(step, kind, [2], control=False) == step.value
        assert device.launch(step, kind, [2], in_place=True) == step.value  # late
    assert [r[0] for r in records(ring)] == [7, 2**32 - 1, 2**40, 2**63 + 5]
    assert device.counts() == (4, 10, 0)
    warps.warp_close(device.control)  # as when a graph is replayed after the run's end
    assert device.launch(ctypes.c_uint64(2**64 - 1), U64, [3], in_place=True) == 2**64 - 1
    assert device.counts() == (4, 10, 1)
    ring.close()


@needs_native
def test_kernels_on_several_streams(warps: ctypes.CDLL, ring_dir: Path) -> None:
    ring = make_ring(ring_dir, [Field("a", "metric", "f64", 8)], slots=1 << 12, native=True)
    device = Warps(warps, ring)
    assert warps.warp_race(device.control, 4, 500) == 0, "warps that do not end"
    written, late, stale = device.counts()
    assert written + late == 2000 and stale == 0
    found = records(ring)
    assert len(found) == written == ring.position
    steps = [r[0] for r in found]
    assert steps == sorted(set(steps)), "steps that go backwards"
    assert all(r[2:] == (r[0],) * 8 for r in found), "one record with another's values"
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


def test_what_a_device_did_not_take_is_counted(built: Any, ring_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device's own count, which it gives back with the ring, is among the dropped."""
    from usp import _xla

    def detach(handle: Any, out: Any, text: Any, size: Any) -> None:
        out[0], out[1], out[2], out[3] = 5, 1, 8, 3

    ring = make_ring(ring_dir, [Field("a", "metric", "f32", len(F32_BITS))], native=True)
    monkeypatch.setattr(built._library, "usp_cuda_detach", detach)
    built._attached.add(ring.handle())
    assert _xla.counts(ring).late == 0
    assert _xla.release(ring, 5.0) == ""
    assert (_xla.counts(ring).late, ring._last_step) == (3, 8)
    ring.close()


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
