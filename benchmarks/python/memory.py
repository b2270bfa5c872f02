"""Memory and compilations of a jitted loop over a million steps, each recorded: neither may grow.

A leak of a few bytes in a step would show: what the process has in anonymous memory must not be more at the end than
after a tenth of the steps, by more than 4 bytes a step. Shared memory is the ring, all of which is resident once it was
written to. Prints a table in Markdown, with --json everything. Exit code 1 if it grew, or compiled again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
from common import SCALARS, WEIGHTS

WAYS = {"t1": "T1, from within the program", "t0": "T0, outputs of the program", "host": "values at hand"}
LEAK = 4  # bytes a step that are no leak yet; nor is a mebibyte in all
SIZE = 1  # of the workload: the step is not what is measured


def resident() -> dict[str, int]:
    """This process's resident memory, anonymous and shared, in bytes."""
    with open("/proc/self/status", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    return {name: int(fields[key].split()[0]) << 10 for name, key in (("anonymous", "RssAnon"), ("shared", "RssShmem"))}


def child(way: str, steps: int, directory: str) -> dict[str, Any]:
    """The loop. Memory is read ten times on the way; compilations are counted by jax itself."""
    import jax
    import usp

    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, _, **about: compiled.append(event))
    with tempfile.TemporaryDirectory(prefix="usp-memory-", dir=directory) as where:
        os.environ["USP_RECORDER_KEY_FILE"] = str(Path(where) / "signing.key")
        specs = {name: usp.field("metric", (), "f64") for name in SCALARS}
        fields = usp.fields(**specs, rho=usp.field("digest", (WEIGHTS,), "f64"))
        with usp.Run(fields=fields, dir=where, staging_areas=0) as run:
            body, carry = common.transport(SIZE)

            @jax.jit
            def step(carry: Any) -> Any:
                (state, number), tele = body(carry)
                if way == "t1":
                    number = run.emit_traced(number, tele)
                return (state, number), tele

            ready = {name: 1.5 for name in SCALARS} | {"rho": [0.25] * WEIGHTS}
            samples = []
            for i in range(steps):
                carry, tele = step(carry)
                if way != "t1":
                    run.emit(i, tele if way == "t0" else ready)
                if i == 0:
                    first = compilations(compiled)
                elif i % (steps // 10) == steps // 10 - 1:
                    jax.block_until_ready(carry)
                    arrived(run, i + 1)
                    samples.append(resident())
            again, programs = compilations(compiled) - first, step._cache_size()
        summary = {key: run.summary[key] for key in ("emitted", "stored", "lost", "dropped")}
    return {"steps": steps, "samples": samples, "compiled_again": again, "programs": programs, **summary}


def arrived(run: Any, records: int) -> None:
    """Waits until no record is on its way to the ring: those that wait take memory, now more and now less."""
    deadline = time.monotonic() + 30
    while run.emitted + run.dropped < records:
        if time.monotonic() > deadline:
            raise SystemExit(f"{records} records, of which only {run.emitted} + {run.dropped} have arrived after 30 s")
        time.sleep(0.01)


def compilations(events: list[str]) -> int:
    """How often XLA has compiled something."""
    return sum(event.endswith("backend_compile_duration") for event in events)


def verdicts(way: str, r: dict[str, Any]) -> list[tuple[bool, str]]:
    """Each bar: whether it is met, and in words."""
    grown = r["samples"][-1]["anonymous"] - r["samples"][0]["anonymous"]
    allowed = max(LEAK * r["steps"] * 9 // 10, 1 << 20)
    steps, programs, again, dropped = r["steps"], r["programs"], r["compiled_again"], r["dropped"]
    return [
        (grown <= allowed, f"{way}: {grown:,} bytes more after {steps:,} steps than after a tenth (bar {allowed:,})"),
        (programs == 1 and again == 0, f"{way}: {programs} program, compiled again {again} times"),
        (r["emitted"] + dropped == steps, f"{way}: {r['emitted']:,} emitted, {dropped:,} dropped and counted"),
    ]


def report(results: dict[str, Any]) -> str:
    """The table."""
    rows = []
    for way, r in results["ways"].items():
        anonymous = [s["anonymous"] / (1 << 20) for s in r["samples"]]
        cells = [f"{anonymous[i]:.1f}" for i in (0, 4, 9)] + [f"{r['samples'][9]['shared'] / (1 << 20):.1f}"]
        rows.append([WAYS[way], f"{r['steps']:,}", *cells, f"{r['programs']}", f"{r['dropped']:,}"])
    header = [
        "way", "steps", "anonymous after a tenth, MiB", "after half", "at the end", "shared at the end",
        "programs compiled", "dropped",
    ]  # fmt: skip
    return "\n\n".join([common.table(header, rows), common.describe(results["machine"])])


def main() -> int:
    """Runs each way in a process of its own, and prints what came out."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ways", default=",".join(WAYS), help="of emitting, with commas; default: all")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--dir", default=tempfile.gettempdir(), help="where usp writes")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps(child(args.way, args.steps, args.dir)))
        return 0
    results: dict[str, Any] = {"machine": common.machine(["jax", "jaxlib", "numpy"]), "ways": {}}
    bars = []
    for way in args.ways.split(","):
        command = [sys.executable, __file__, "--way", way, "--steps", str(args.steps), "--dir", args.dir]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1800)
        if done.returncode:
            raise SystemExit(f"{way}: exit code {done.returncode}\n{done.stderr[-4000:]}")
        results["ways"][way] = json.loads(done.stdout)
        bars += verdicts(way, results["ways"][way])
    return common.conclude(results, bars, report, args.json)


if __name__ == "__main__":
    sys.exit(main())
