"""What the tests of device values share: a schema, special values with their bits, and rings as rows of words."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ringreader import read

from usp._ring import Ring
from usp._schema import Field, Schema


def make_ring(
    directory: Path, fields: list[Field], name: str = "run", slots: int = 4096, native: bool | None = None
) -> Ring:
    return Ring(directory / f"{name}.ring", name, Schema("test.v1", fields), b"{}", slots=slots, native=native)


def on_devices(count: int, program: str, ring_dir: Path) -> None:
    """Runs a program in a process that has so many devices of the CPU, and wants that it says that it is fine."""
    tests = Path(__file__).parent
    env = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent / "src")]),
    }
    command = [sys.executable, "-c", textwrap.dedent(program), str(ring_dir)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "fine"


def records(ring: Ring) -> list[tuple[int, ...]]:
    """All records of a ring, none of which was lost, as rows of words."""
    found = read(ring.path)
    assert not found.lost
    assert [n for n, _ in found.records] == list(range(ring.position))
    return [struct.unpack(f"<{len(payload) // 8}Q", payload) for _, payload in found.records]


def widened(bits: int, exponent_bits: int, mantissa_bits: int) -> int:
    """Bits of the float64 equal to a narrow float, by the definition of both, in whole numbers of any size."""
    sign = bits >> (exponent_bits + mantissa_bits)
    exponent = bits >> mantissa_bits & (1 << exponent_bits) - 1
    mantissa = bits & (1 << mantissa_bits) - 1
    bias = (1 << exponent_bits - 1) - 1
    if exponent == (1 << exponent_bits) - 1:
        wide = 2047 << 52 | mantissa << 52 - mantissa_bits
    elif exponent == 0 and mantissa == 0:
        wide = 0
    else:
        power = (exponent or 1) - bias - mantissa_bits
        whole = mantissa | (1 << mantissa_bits if exponent else 0)
        places = whole.bit_length() - 1
        wide = (power + places + 1023) << 52 | (whole - (1 << places)) << 52 - places
    return sign << 63 | wide


# Zeros of both signs, the least and greatest subnormals, the least normals, infinities, NaNs with payloads.
F64_BITS = [
    0x0, 0x8000000000000000, 0x1, 0x800FFFFFFFFFFFFF, 0x0010000000000000, 0x3FF0000000000001, 0x7FEFFFFFFFFFFFFF,
    0x7FF0000000000000, 0xFFF0000000000000, 0x7FF8000000000000, 0x7FF8DEADBEEF0001, 0xFFF0000000000001,
    0x7FF4000000000000,
]  # fmt: skip
F32_BITS = [
    0x0, 0x80000000, 0x1, 0x807FFFFF, 0x00400000, 0x00800000, 0x3F800001, 0x7F7FFFFF,
    0x7F800000, 0xFF800000, 0x7FC00000, 0x7FC0BEEF, 0xFF800001,
]  # fmt: skip


def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened for too long"
        time.sleep(0.002)


def slow(seconds: float = 1.0) -> Callable[[], Any]:
    """Returns a function that begins a computation of about so many seconds and returns its scalar result at once."""
    import jax
    import jax.numpy as jnp

    x = jnp.full((200, 200), 0.001, jnp.float32)
    run = jax.jit(lambda x, n: jax.lax.fori_loop(0, n, lambda i, a: jnp.tanh(a @ x), x).sum())
    run(x, 1).block_until_ready()
    began = time.perf_counter()
    run(x, 200).block_until_ready()
    rounds = int(200 * seconds / (time.perf_counter() - began)) + 1
    return lambda: run(x, rounds)
