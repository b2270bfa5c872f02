"""What the queue of device values takes at the pace of a loop. What it costs is for benchmarks/python/device_latency.py."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from devicehelp import make_ring

from usp._device import DeviceQueue, pack
from usp._schema import Field

jax = pytest.importorskip("jax", reason="no jax here")
import jax.numpy as jnp  # noqa: E402


@pytest.mark.parametrize("packed", [False, True], ids=["mapping", "packed"])
def test_all_at_the_pace_of_a_loop(ring_dir: Path, packed: bool) -> None:
    """Four device leaves every 0.2 ms, with the thread draining beside it: each is written, and none dropped."""
    fields = [Field("a", "metric", "f32", 8), *(Field(n, "metric", "f32", 1) for n in "bcd")]
    ring = make_ring(ring_dir, fields)
    queue = DeviceQueue(ring, ring.schema, capacity=4096)
    step_fn = jax.jit(lambda x: {"a": x, "b": x.sum(), "c": x[0], "d": x.max()})
    if packed:
        step_fn = jax.jit(lambda x: pack(ring.schema, {"a": x, "b": x.sum(), "c": x[0], "d": x.max()}))
    x = jnp.ones(8, jnp.float32)
    for step in range(1500):
        assert queue.put(step, step_fn(x))
        time.sleep(0.0002)
    assert queue.close() == 0
    ring.close()
    assert (queue.dropped, queue.written) == (0, 1500)
