"""What emitting values of the device costs: T0 the thread that calls it, T1 each step of a scan.

T0: four leaves of a jitted step that has ended, given to the queue while its thread drains it; beside it, what any way out
has to do, `copy_to_host_async` of the same leaves. Blocks of both take turns; the figures are medians of single calls.
T1: a scan with a record in each step, and the same scan without, in turns; the figure is the difference of their quickest
runs for each step. Prints a table, with --json everything. Exit code 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import numpy as np

from usp import _xla
from usp._device import DeviceQueue, pack
from usp._ring import Ring
from usp._schema import Field, Schema

T0_BAR, T1_BAR = 10.0, 0.3  # µs
FIELDS = [Field("a", "metric", "f32", 8), *(Field(name, "metric", "f32", 1) for name in "bcd")]


def queued(where: Path, packed: bool, turns: int, steps: int) -> dict[str, Any]:
    """Medians of a call of the queue, and of beginning the same copies."""
    import jax
    import jax.numpy as jnp

    ring = Ring(where / f"{packed}.ring", "bench", Schema("bench", FIELDS), b"{}", slots=4096)
    queue = DeviceQueue(ring, ring.schema, capacity=4096)

    def step(x: Any) -> Any:
        values = {"a": x, "b": x.sum(), "c": x[0], "d": x.max()}
        return pack(ring.schema, values) if packed else values

    run, x = jax.jit(step), jnp.ones(8, jnp.float32)
    took: dict[str, list[int]] = {"put": [], "copies": []}
    number = 0
    for turn in range(turns):
        for what in ("put", "copies") if turn % 2 else ("copies", "put"):
            outputs = [run(x) for _ in range(steps)]
            jax.block_until_ready(outputs)
            gc.collect()
            for values in outputs:
                leaves = jax.tree.leaves(values)
                began = time.perf_counter_ns()
                if what == "put":
                    queue.put(number, values)
                else:
                    for leaf in leaves:
                        leaf.copy_to_host_async()
                ended = time.perf_counter_ns()
                number += what == "put"
                if turn:
                    took[what].append(ended - began)
                time.sleep(0.0002)
    if left := queue.close():
        sys.exit(f"{left} records were left in the queue")
    if (queue.dropped, queue.written) != (0, number):
        sys.exit(f"of {number} records {queue.written} were written, {queue.dropped} dropped")
    ring.finish(True)
    ring.close()
    return {
        "way": "T0, packed in the program" if packed else "T0", "calls": len(took["put"]), "bar_us": T0_BAR,
        "median_us": float(np.median(took["put"])) / 1e3, "p99_us": float(np.quantile(took["put"], 0.99)) / 1e3,
        "copies_us": float(np.median(took["copies"])) / 1e3,
    }  # fmt: skip


def scanned(where: Path, turns: int, steps: int) -> dict[str, Any]:
    """What a record adds to a step of a scan."""
    import jax
    import jax.numpy as jnp

    fields = [Field("a", "metric", "f32", 4), Field("b", "metric", "f32", 1), Field("c", "flag", "u64", 1)]
    ring = Ring(where / "scan.ring", "bench", Schema("bench", fields), b"{}", slots=1 << 16, native=True)

    def program(emits: bool) -> Any:
        def one(carry: Any, _: Any) -> Any:
            number, x = carry
            x = x * 0.999 + jnp.sin(x) * 0.001
            if emits:
                number = _xla.emit_traced(ring, ring.schema, number, {"a": x, "b": x.sum(), "c": (x > 0).any()})
            return (number + 1, x), None

        return jax.jit(lambda s, x: jax.lax.scan(one, (s, x), None, length=steps)[0])

    programs = {emits: program(emits) for emits in (False, True)}
    number, x = jnp.int32(0), jnp.ones(4, jnp.float32)
    took: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(turns + 1):
        for emits, run in programs.items():
            began = time.perf_counter()
            out = jax.block_until_ready(run(number, x))
            if turn:
                took[emits].append(time.perf_counter() - began)
        number = out[0]
    if ring.position != (turns + 1) * steps:
        sys.exit(f"{ring.position} records, want {(turns + 1) * steps}")
    ring.finish(True)
    ring.close()
    per = {emits: 1e6 * min(t) / steps for emits, t in took.items()}
    return {
        "way": "T1, in a scan", "steps": turns * steps, "bar_us": T1_BAR,
        "with_us": per[True], "without_us": per[False], "median_us": per[True] - per[False],
    }  # fmt: skip


def report(results: dict[str, Any]) -> str:
    lines = ["| way | records | µs | p99, µs | beside it, µs |", "| --- | --- | --- | --- | --- |"]
    for r in results["rows"]:
        if "copies_us" in r:
            beside = f"{r['copies_us']:.2f}: `copy_to_host_async` of the same arrays"
            lines.append(f"| {r['way']} | {r['calls']:,} | {r['median_us']:.2f} | {r['p99_us']:.1f} | {beside} |")
        else:
            beside = f"{r['without_us']:.3f}: a step without"
            lines.append(f"| {r['way']} | {r['steps']:,} | {r['median_us']:.3f} more |  | {beside} |")
    return "\n".join(lines)


def main() -> int:
    """Prints what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    shm = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="usp-bench-", dir=shm if shm.is_dir() else None) as where:
        rows = [queued(Path(where), packed, args.turns, 300) for packed in (False, True)]
        rows.append(scanned(Path(where), args.turns, 100_000))
    results = {"machine": common.machine(["jax", "jaxlib", "numpy"]), "rows": rows}
    bars = [(r["median_us"] <= r["bar_us"], f"{r['way']}: {r['median_us']:.3f} µs, bar {r['bar_us']}") for r in rows]
    return common.conclude(results, bars, report, args.json)


if __name__ == "__main__":
    sys.exit(main())
