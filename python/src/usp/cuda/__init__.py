"""Records written by a CUDA device itself: `make -C python cuda` builds what is loaded here, where nvcc is.

Not yet run on a GPU: it compiles, and its kernel is run on the CPU by the tests. A ring that a device writes belongs to
it: the host's emit raises ClosedError for the rest of the run.
"""

from __future__ import annotations

import ctypes
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from usp._errors import RingError

if TYPE_CHECKING:
    from usp._ring import Ring

_TEXT = 256  # bytes for what went wrong

_path = Path(__file__).with_name("libusp_cuda.so")
try:
    _library = ctypes.CDLL(str(_path))
except OSError as e:
    raise ImportError(f"{_path.name}: {e}") from None
_library.usp_cuda_attach.restype = _library.usp_cuda_detach.restype = ctypes.c_char_p

_lock = threading.Lock()
_attached: set[int] = set()  # handles of rings that are with a device


def register(target: str) -> str:
    """Registers the call with JAX; returns "" or why it cannot be."""
    import jax

    text = ctypes.create_string_buffer(_TEXT)
    if _library.usp_cuda_devices(text, ctypes.c_size_t(_TEXT)) < 0:
        return text.value.decode()
    try:
        jax.devices("cuda")
        jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(_library.usp_cuda_handler), platform="CUDA")
    except Exception as e:  # of jaxlib, of whatever class it is there
        return f"jaxlib refused the call: {str(e).splitlines()[0]}"
    return ""


def attach(ring: Ring) -> None:
    """Gives the ring to the current device, at the first call. Raises RingError with what the device says."""
    handle = ring.handle()
    with _lock:
        if handle in _attached:
            return
        base, size, header_len = ring.lend()
        lay = ring._layout
        last = ring.last_step
        text = ctypes.create_string_buffer(_TEXT)
        u64 = ctypes.c_uint64
        why = _library.usp_cuda_attach(
            ctypes.c_int(handle), ctypes.c_void_p(base), u64(size), u64(header_len), u64(lay.slot_size), u64(lay.slots),
            u64(lay.payload_len), u64(ring.position), u64(last >= 0), u64(max(last, 0)), ctypes.c_int64(time.time_ns()),
            text, ctypes.c_size_t(_TEXT),
        )  # fmt: skip
        if why is not None:
            raise RingError(f"ring {ring.path}: {why.decode()}")
        _attached.add(handle)


def detach(ring: Ring, timeout: float) -> str:
    """Takes the ring back when the device has written what it was given; returns "" or why it was not given back.

    Waits at most timeout seconds. A ring that was not given back must stay mapped.
    """
    handle = ring.handle()
    with _lock:
        if handle not in _attached:
            return ""
        _attached.discard(handle)
    answer: list[str] = []

    def wait() -> None:
        text = ctypes.create_string_buffer(_TEXT)
        out = (ctypes.c_uint64 * 4)()
        why = _library.usp_cuda_detach(ctypes.c_int(handle), out, text, ctypes.c_size_t(_TEXT))
        if why is None and out[1]:
            ring._last_step = out[2]
        if why is None:
            ring.late = out[3]
        answer.append("" if why is None else why.decode())

    thread = threading.Thread(target=wait, name="usp-cuda-detach", daemon=True)
    thread.start()
    thread.join(timeout)
    return answer[0] if answer else f"the device did not give the ring back within {timeout:g} s"
