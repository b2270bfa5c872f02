"""Step times of a jitted loop with usp against without, each recorded and digested, whatever befalls the recorder.

Blocks of steps with usp and without take turns, in one process for each way out of the program and each state of the
recorder. The ratios are those of the quantiles of all steps with it to those of all without, with bootstrap intervals
over pairs of blocks, or, with several processes, their geometric mean with its interval over the processes. Prints a
table in Markdown, with --json everything. Exit code 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import common
import numpy as np
from common import SCALARS, WEIGHTS
from states import STATES, Well, small_disk

MEDIAN, P99 = 1.02, 1.05  # bars
LEAD = 0.1  # s of each block that do not count: first steps are slow, and a recorder has little to do yet
STUDENT = [12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18]  # 97.5 % of t, by degrees of freedom
LAST_CORE = (os.cpu_count() or 1) - 1  # usp's, with --apart
WAYS = {  # workload, seconds of a step, steps in a block, calls of a scan
    "t1": ("transport", 100e-6, 2000, 1),
    "scan": ("transport", 100e-6, 2000, 50),
    "t0": ("training", 1e-3, 300, 1),
    "packed": ("training", 1e-3, 300, 1),
}
WORDS = {
    "t1": "T1, each step called from Python", "scan": "T1, in a scan of 50 steps", "t0": "T0",
    "packed": "T0, packed in the program",
}  # fmt: skip

Loop = Callable[[Any, int], tuple[Any, np.ndarray]]  # state, steps -> state, ns of each call


def programs(way: str, size: int, run: Any) -> tuple[Loop, Loop, Any]:
    """The loop without usp, the one with it, and the state that they begin with."""
    import jax

    workload, _, _, scan = WAYS[way]
    body, carry = common.WORKLOADS[workload][0](size)

    def traced(carry: Any) -> tuple[Any, Any]:
        (state, number), tele = body(carry)
        token = run.emit_traced(number - 1, tele)
        return (state, token + 1), None  # who emits from inside has no use for stacked values, which plain hands out

    def packing(carry: Any) -> tuple[Any, Any]:
        carry, tele = body(carry)
        return carry, run.pack(tele)

    plain = loop(jax.jit(common.repeated(body, scan)), None, scan)
    if run is None:
        return plain, plain, carry
    if way == "t0":
        return plain, loop(jax.jit(body), run.emit, scan), carry
    if way == "packed":
        return plain, loop(jax.jit(packing), run.emit, scan), carry
    return plain, loop(jax.jit(common.repeated(traced, scan)), None, scan), carry


def loop(step: Any, emit: Any, scan: int) -> Loop:
    """The loop as it is measured: each step is waited for, so that its time is its own and not that of a queue."""
    import jax

    def run(carry: Any, steps: int) -> tuple[Any, np.ndarray]:
        clock, times = time.perf_counter_ns, np.zeros(steps // scan, np.int64)
        number = int(carry[1])
        a = clock()
        for i in range(steps // scan):
            carry, tele = step(carry)
            if emit is not None:
                emit(number + i, tele)
            jax.block_until_ready(carry)
            b = clock()
            times[i] = b - a
            a = b
        return carry, times // scan

    return run


def child(args: argparse.Namespace) -> None:
    """One way in one state: writes what was measured to args.out."""
    kind = STATES[args.state]
    os.environ.update(kind.env)
    with contextlib.ExitStack() as stack:
        where = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="usp-steptime-", dir=args.dir)))
        if args.state == "full":
            where = stack.enter_context(small_disk(where))
        os.environ["USP_RECORDER_KEY_FILE"] = str(where / "signing.key")
        begin_jax(args)
        run = None
        if kind.usp:
            import usp

            specs = {name: usp.field("metric", (), "f64") for name in SCALARS}
            fields = usp.fields(**specs, rho=usp.field("digest", (WEIGHTS,), "f64"))
            record = "outside" if args.state == "gone" else True
            with recorders_core() if args.apart else contextlib.nullcontext():
                run = usp.Run(fields=fields, dir=where, staging_areas=0, record=record)
        state = kind(run, where)
        try:
            blocks, cpu = alternate(args, state, run)
            state.end()
        except BaseException:
            state.abandon()  # or a recorder would stand still for ever
            raise
        said: dict[str, Any] = {"kills": state.kills, "cpu": cpu}
        if run is not None:
            native, summary = run.native, run.close()
            said.update(native=native, **{k: summary[k] for k in ("emitted", "stored", "lost", "dropped")})
            process = getattr(state, "process", None)
            if process is not None:
                process.wait(60)
    np.savez(args.out, without=np.stack(blocks[0]), with_usp=np.stack(blocks[1]), said=json.dumps(said))


def begin_jax(args: argparse.Namespace) -> None:
    """Has jax start its threads before usp has one, as in a program whose state is there before its run begins.

    On few cores glibc has fewer heaps than such a process threads. A thread more, of whoever it is, before jax's own makes
    two of these share one, and then 7 of 1,000 steps wait half a millisecond for malloc, with usp and without.
    """
    plain, _, carry = programs(args.way, args.size, None)
    plain(carry, 500)


@contextlib.contextmanager
def recorders_core() -> Iterator[None]:
    """What is started meanwhile is bound to a core that the loop does not have."""
    loops = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {LAST_CORE})
    try:
        yield
    finally:
        os.sched_setaffinity(0, loops)


def alternate(args: argparse.Namespace, state: Well, run: Any) -> tuple[tuple[list[Any], list[Any]], float]:
    """Runs blocks in turns; which is first alternates too. Returns their times, and the share of a core they used."""
    plain, emitting, carry = programs(args.way, args.size, run)
    _, seconds, steps, scan = WAYS[args.way]
    steps, lead = round(steps * state.longer * args.scale), round(LEAD / seconds / scan) * scan
    for each in (plain, emitting, plain, emitting):
        carry, _ = each(carry, min(steps, 500))
    if args.apart:  # the queue's thread began with the first step
        for thread in threading.enumerate():
            if thread.name.startswith("usp-") and thread.native_id is not None:
                os.sched_setaffinity(thread.native_id, {LAST_CORE})
    state.begin()
    blocks: tuple[list[Any], list[Any]] = ([], [])
    cpu, wall = time.process_time(), time.perf_counter()
    for pair in range(max(4, round(state.pairs * args.pairs))):
        for kind in (0, 1) if pair % 2 == 0 else (1, 0):
            (state.with_usp if kind else state.without)()
            carry, _ = (emitting if kind else plain)(carry, lead)
            if kind:
                state.counted()
            carry, times = (emitting if kind else plain)(carry, steps)
            blocks[kind].append(times)
    return blocks, (time.process_time() - cpu) / (time.perf_counter() - wall)


def measure(args: argparse.Namespace, way: str, state: str, size: int) -> dict[str, Any] | None:
    """Runs a child and gives its figures, times in ns; None, aloud, if the state cannot be had here."""
    with tempfile.TemporaryDirectory(prefix="usp-steptime-", dir=args.dir) as scratch:
        out = Path(scratch) / "out.npz"
        command = [
            sys.executable, __file__, "--way", way, "--state", state, "--out", str(out), "--size", str(size),
            "--pairs", str(args.pairs), "--scale", str(args.scale), "--dir", args.dir, *["--apart"] * args.apart,
        ]  # fmt: skip
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
        if "PermissionError: a full disk" in done.stderr:
            print(f"LEFT OUT: {way}, {state}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            return None
        if done.returncode:
            raise SystemExit(f"{way}, {state}: exit code {done.returncode}\n{done.stderr[-4000:]}")
        with np.load(out) as data:
            off, on, said = data["without"], data["with_usp"], json.loads(str(data["said"]))
    result: dict[str, Any] = {"pairs": len(on), "steps": int(on.size), "said": said}
    for name, q in (("median", 0.5), ("p99", 0.99)):
        ratio = common.interval(len(on), lambda i, q=q: float(np.quantile(on[i], q) / np.quantile(off[i], q)))
        result[name] = {
            "without": float(np.quantile(off, q)), "with": float(np.quantile(on, q)),
            "ratio": ratio[0], "low": ratio[1], "high": ratio[2],
        }  # fmt: skip
    result["max"] = {"without": float(off.max()), "with": float(on.max())}
    return result


def together(each: list[dict[str, Any]]) -> dict[str, Any]:
    """What several processes gave, as one: the geometric mean of the ratios, and its 95 % interval over the processes.

    From process to process a p99 differs by more than the pairs of one can tell.
    """
    if len(each) == 1:
        return each[0]
    result: dict[str, Any] = {"pairs": sum(r["pairs"] for r in each), "steps": sum(r["steps"] for r in each)}
    result["said"] = {k: v for r in each for k, v in r["said"].items()}
    for key in ("lost", "dropped", "stored", "emitted"):
        if key in result["said"]:
            result["said"][key] = sum(r["said"][key] for r in each)
    for name in ("median", "p99"):
        logs = np.log([r[name]["ratio"] for r in each])
        half = STUDENT[min(len(each), len(STUDENT) + 1) - 2] * logs.std(ddof=1) / np.sqrt(len(each))
        result[name] = {key: float(np.median([r[name][key] for r in each])) for key in ("without", "with")}
        result[name] |= {
            "ratio": float(np.exp(logs.mean())), "low": float(np.exp(logs.mean() - half)),
            "high": float(np.exp(logs.mean() + half)), "each": [r[name]["ratio"] for r in each],
        }  # fmt: skip
    result["max"] = {key: max(r["max"][key] for r in each) for key in ("without", "with")}
    return result


def report(results: dict[str, Any]) -> str:
    """The table."""
    rows = []
    for way, states in results["ways"].items():
        for state, r in states.items():
            if r is None:
                rows.append([WORDS[way], STATES[state].words, "not tried: no file system could be mounted", *[""] * 5])
                continue
            cells = [WORDS[way], STATES[state].words, f"{r['steps']:,}"]
            for name in ("median", "p99"):
                q = r[name]
                cells += [f"{common.micro(q['without'])} → {common.micro(q['with'])}"]
                cells += [f"{q['ratio']:.3f} ({q['low']:.3f} to {q['high']:.3f})"]
            rows.append([*cells, f"{common.micro(r['max']['without'])} → {common.micro(r['max']['with'])}"])
    header = ["way", "recorder", "steps each", "median, µs", "ratio", "p99, µs", "ratio", "longest, µs"]
    return "\n\n".join([common.table(header, rows), common.describe(results["machine"])])


def verdicts(results: dict[str, Any]) -> list[tuple[bool, str]]:
    """Each bar: whether it is met, and in words. The control is no bar."""
    out = []
    for way, states in results["ways"].items():
        for state, r in states.items():
            if r is None or not STATES[state].usp:
                continue
            met = r["median"]["ratio"] <= MEDIAN and r["p99"]["ratio"] <= P99
            text = f"median {r['median']['ratio']:.3f} (bar {MEDIAN}), p99 {r['p99']['ratio']:.3f} (bar {P99})"
            out.append((met, f"{way}, {state}: {text}"))
            said = r["said"]
            if state in ("running", "once") and (said["lost"] or said["dropped"] or said["stored"] != said["emitted"]):
                out.append((False, f"{way}, {state}: not everything was stored: {said}"))
    return out


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ways", default=",".join(WAYS), help="of emitting, with commas; default: all")
    parser.add_argument("--states", default=",".join(STATES), help="of the recorder, with commas; default: all")
    parser.add_argument("--pairs", type=float, default=1.0, help="pairs of blocks, to the usual number")
    parser.add_argument("--processes", type=int, default=1, help="for each row: the geometric mean of what they give")
    parser.add_argument("--scale", type=float, default=1.0, help="steps of a block, to the usual number")
    parser.add_argument("--dir", default=tempfile.gettempdir(), help="where usp writes, but for the full disk")
    parser.add_argument(
        "--apart", action="store_true", help="leave a core to usp, recorder and threads: the loop is bound to the others"
    )
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    for name in ("--way", "--state", "--out"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Measures every way in every state, and prints what came out."""
    args = arguments()
    if args.way:
        child(args)
        return 0
    if args.apart:
        os.sched_setaffinity(0, os.sched_getaffinity(0) - {LAST_CORE})  # jax takes as many threads as it may use cores
    results: dict[str, Any] = {"machine": common.machine(["jax", "jaxlib", "numpy"]), "ways": {}}
    for way in args.ways.split(","):
        workload, target, _, scan = WAYS[way]
        size = common.calibrate(workload, target, scan)
        each: dict[str, list[Any]] = {state: [] for state in args.states.split(",") if way in STATES[state].ways}
        for _ in range(args.processes):  # all states each time, so that a bad minute of the machine is not one state's
            for state, got in each.items():
                began = time.perf_counter()
                got.append(measure(args, way, state, size))
                print(f"{way}, {state}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
        results["ways"][way] = {state: together(got) if all(got) else None for state, got in each.items()}
    return common.conclude(results, verdicts(results), report, args.json)


if __name__ == "__main__":
    sys.exit(main())
