"""How long `emit` keeps the calling thread, for host values, with the extension and in pure Python.

Two records: five scalar fields, and four scalars with a vector of four float64. Batches give the mean over a thousand
calls, of which the median and the least are printed; single calls give the median and the 99th percentile, from which
the cost of reading the clock twice is not taken off.

Usage: PYTHONPATH=python/src python benchmarks/python/emit_latency.py
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from time import perf_counter_ns
from typing import Any

from usp._ring import Ring, native_available
from usp._schema import Schema, fields


def cases() -> dict[str, tuple[Schema, dict[str, Any]]]:
    """The records to emit."""
    found: dict[str, tuple[Schema, dict[str, Any]]] = {}
    scalars = {f"m{i}": 0.25 * i for i in range(5)}
    found["5 floats"] = Schema("bench", fields(**dict.fromkeys(scalars, ("metric", 1)))), scalars
    try:
        import numpy
    except ImportError:
        print("numpy is not here: records with arrays are left out", file=sys.stderr)
        return found
    declared = fields(a=("metric", 1), b=("metric", 1), c=("metric", 1), alarm=("flag", 1), rho=("digest", 4))
    values = {"a": 1.5, "b": 2.5, "c": 3.5, "alarm": True, "rho": numpy.full(4, 0.25)}
    found["3 floats, flag, rho[4]"] = Schema("bench", declared), values
    declared = fields(a=("metric", 1), b=("metric", 1), rho=("digest", 1024))
    found["2 floats, rho[1024]"] = (
        Schema("bench", declared),
        {"a": 1.5, "b": numpy.float32(2.5), "rho": numpy.ones(1024)},
    )
    return found


def batches(emit: Callable[..., None], values: Mapping[str, Any], first: int, count: int, size: int) -> list[float]:
    """Mean nanoseconds of a call, for each batch; the loop is part of it."""
    means = []
    for b in range(count):
        step = first + b * size
        begin = perf_counter_ns()
        for k in range(step, step + size):
            emit(k, values)
        means.append((perf_counter_ns() - begin) / size)
    return means


def singles(emit: Callable[..., None], values: Mapping[str, Any], first: int, count: int) -> list[int]:
    """Nanoseconds of single calls, the clock's included."""
    took = []
    for k in range(first, first + count):
        begin = perf_counter_ns()
        emit(k, values)
        took.append(perf_counter_ns() - begin)
    return took


def main() -> None:
    """Prints a table, or JSON with --json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--size", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    writers = {"extension": True, "pure Python": False}
    if why := native_available():
        print(f"the extension is not here ({why})", file=sys.stderr)
        del writers["extension"]
    directory = tempfile.mkdtemp(prefix="usp-bench-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    rows = []
    try:
        for name, (schema, values) in cases().items():
            for writer, native in writers.items():
                ring = Ring(
                    os.path.join(directory, f"{len(rows)}.ring"), "bench", schema, b"{}", slots=4096, native=native
                )
                emit = ring.emitter(lambda *_: sys.exit("a host value was not taken"))
                batches(emit, values, 0, 5, args.size)
                means = batches(emit, values, 10**6, args.batches, args.size)
                took = sorted(singles(emit, values, 10**9, args.batches * args.size // 4))
                rows.append({
                    "record": name, "writer": writer, "batch_median_ns": round(statistics.median(means)),
                    "batch_least_ns": round(min(means)), "single_median_ns": took[len(took) // 2],
                    "single_p99_ns": took[len(took) * 99 // 100],
                })  # fmt: skip
                ring.finish(True)
                ring.close()
    finally:
        shutil.rmtree(directory)
    if args.json:
        print(
            json.dumps(
                {
                    "python": platform.python_version(),
                    "machine": platform.machine(),
                    "cpus": os.cpu_count(),
                    "rows": rows,
                }
            )
        )
        return
    print(f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} CPUs; nanoseconds")
    print(f"{'record':24} {'writer':12} {'batch median':>12} {'least':>7} {'single median':>14} {'p99':>7}")
    for r in rows:
        batch = f"{r['batch_median_ns']:12} {r['batch_least_ns']:7}"
        print(f"{r['record']:24} {r['writer']:12} {batch} {r['single_median_ns']:14} {r['single_p99_ns']:7}")


if __name__ == "__main__":
    main()
