"""What logging a step costs, side by side: the same jitted loop with each logger, in turns with the loop alone.

Each logger runs in a process of its own, in several rounds; within a process, blocks of steps with it and without take
turns. Two cases: the values are in the host's memory anyway; or they are outputs of the jitted step, which all loggers
but usp have to wait for. Prints a table in Markdown, with --json everything. Exit code 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import numpy as np
from loggers import LOGGERS, Nothing

BARS = {"wandb": 50.0, "tensorboardx": 10.0, "tensorboard": 10.0}  # their calling-thread cost to that of usp, at least
CASES = {"host": "values at hand", "device": "values on the device"}
WARM_UP = 100  # steps each way before anything counts


def block(
    step: Any, carry: Any, logger: Nothing, case: str, first: int, steps: int, ready: list[Any]
) -> tuple[Any, float, Any]:
    """Runs steps of the loop. Returns the state, the seconds they took, and for each step the ns of wait and of cost.

    The wait is that for the step to end, which would be waited for later anyway; the cost is what remains: converting
    values that are there, and the cost.
    """
    import jax

    clock, times = time.perf_counter_ns, np.zeros((2, steps), np.int64)
    host = case == "host"
    waits = host or logger.waits
    began = clock()
    for i in range(steps):
        carry, tele = step(carry)
        a = clock()
        if waits:
            jax.block_until_ready(tele)
        b = clock()
        logger.log(first + i, ready[i % len(ready)] if host else logger.host(tele))
        c = clock()
        times[0, i], times[1, i] = b - a, c - b
    jax.block_until_ready(carry)
    return carry, (clock() - began) / 1e9, times


def child(args: argparse.Namespace) -> None:
    """One logger in one case: writes what was measured to args.out."""
    import jax

    body, carry = common.WORKLOADS[args.workload][0](args.size)
    step = jax.jit(body)
    carry, tele = step(carry)
    sample = jax.device_get(tele)
    with tempfile.TemporaryDirectory(prefix="usp-rivals-", dir=args.dir) as where:
        logger, alone = LOGGERS[args.child](Path(where)), LOGGERS["nothing"](Path(where))
        ready = {}
        for each in (logger, alone):
            ready[each] = [each.prepared({k: v * (1 + i / 64) for k, v in sample.items()}) for i in range(64)]
        steps = max(10, round(logger.steps * args.scale))
        number, taken, calls = 0, {logger: [], alone: []}, []
        for pair in range(-1, args.pairs):  # the first pair is for the caches
            for each in (logger, alone) if pair % 2 else (alone, logger):
                n = steps if pair >= 0 else min(steps, WARM_UP)
                carry, seconds, times = block(step, carry, each, args.case, number, n, ready[each])
                number += n
                each.settle()
                if pair >= 0:
                    taken[each].append(seconds)
                    if each is logger:
                        calls.append(times)
        began = time.perf_counter()
        said = logger.close()
    result = {"with": taken[logger], "without": taken[alone], "close": time.perf_counter() - began, "said": said}
    np.savez(args.out, times=np.concatenate(calls, axis=1), result=json.dumps(result))


def measure(args: argparse.Namespace, name: str, case: str, scratch: Path) -> dict[str, Any]:
    """Runs a child and reads what it measured."""
    out = scratch / "out.npz"
    command = [
        sys.executable, __file__, "--child", name, "--case", case, "--out", str(out), "--size", str(args.size),
        "--workload", args.workload, "--pairs", str(args.pairs), "--scale", str(args.scale), "--dir", args.dir,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=scratch, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise SystemExit(f"{name}, {CASES[case]}: exit code {done.returncode}\n{done.stderr[-4000:]}")
    with np.load(out) as data:
        return {**json.loads(str(data["result"])), "times": data["times"]}


def summarize(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of one logger in one case, from all its rounds. Times in ns, of single calls."""
    wait, cost = np.concatenate([r["times"] for r in rounds], axis=1)
    on, off = (np.concatenate([r[key] for r in rounds]) for key in ("with", "without"))
    slow, low, high = common.interval(len(on), lambda i: float(np.median(on[i] / off[i])))
    steps = cost.size / len(on)
    return {
        "steps": int(cost.size), "wait_median": float(np.median(wait)), "median": float(np.median(cost)),
        "mean": float(cost.mean()), "p99": float(np.quantile(cost, 0.99)), "max": float(cost.max()),
        "medians_of_rounds": [float(np.median(r["times"][1])) for r in rounds],
        "slow_down": slow, "slow_down_low": low, "slow_down_high": high,
        "step_without": float(np.median(off)) / steps * 1e9, "step_with": float(np.median(on)) / steps * 1e9,
        "close_seconds": float(np.median([r["close"] for r in rounds])), "said": [r["said"] for r in rounds],
    }  # fmt: skip


def report(results: dict[str, Any]) -> str:
    """The tables, one for each case."""
    parts = []
    for case, words in CASES.items():
        rows = []
        for name, cases in results["loggers"].items():
            r = cases[case]
            usp = results["loggers"].get("usp", {}).get(case)
            ratio = f"{r['median'] / usp['median']:.0f} ×" if usp and name not in ("usp", "nothing") else ""
            figures = [common.micro(r[key]) for key in ("median", "mean", "p99", "max")]
            wait = [common.micro(r["wait_median"])] if case == "device" else []
            slow = f"{r['slow_down']:.3f} ({r['slow_down_low']:.3f} to {r['slow_down_high']:.3f})"
            rows.append([LOGGERS[name].title, f"{r['steps']:,}", *wait, *figures, ratio, slow])
        base = results["loggers"]["nothing"][case]["step_without"]
        wait = ["wait for the step, µs"] if case == "device" else []
        header = ["logger", "steps", *wait, "cost median, µs", "mean", "p99", "max", "to usp's", "loop, × without"]
        parts.append(f"**{words.capitalize()}**, a step of {base / 1e3:,.0f} µs:\n\n{common.table(header, rows)}")
    return "\n\n".join([*parts, common.describe(results["machine"])])


def verdicts(results: dict[str, Any]) -> list[tuple[bool, str]]:
    """Each bar: whether it is met, and in words."""
    out = []
    for name, least in BARS.items():
        for case, words in CASES.items():
            if not {name, "usp"} <= results["loggers"].keys():
                continue
            r, usp = results["loggers"][name][case], results["loggers"]["usp"][case]
            ratio, means = r["median"] / usp["median"], r["mean"] / usp["mean"]
            text = f"{LOGGERS[name].title} takes {ratio:.0f} times what usp does (bar {least:.0f}; means {means:.0f})"
            out.append((ratio >= least, f"{words}: {text}"))
    for case, words in CASES.items():
        for said in results["loggers"].get("usp", {}).get(case, {}).get("said", []):
            if said["dropped"] or said["lost"] or said["stored"] != said["emitted"]:
                out.append((False, f"{words}: usp did not store everything: {said}"))
    return out


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default=",".join(LOGGERS), help="loggers, with commas; default: all")
    parser.add_argument("--rounds", type=int, default=3, help="processes for each logger and case")
    parser.add_argument("--pairs", type=int, default=6, help="pairs of blocks in each process")
    parser.add_argument("--scale", type=float, default=1.0, help="steps of a block, to the usual number")
    parser.add_argument("--workload", choices=common.WORKLOADS, default="transport")
    parser.add_argument("--target", type=float, default=0.3e-3, help="seconds that a step is to take")
    parser.add_argument("--dir", default=tempfile.gettempdir(), help="where the loggers write")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    for name in ("--child", "--case", "--out"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Measures every logger in every case, and prints what came out."""
    args = arguments()
    if args.child:
        child(args)
        return 0
    names = ["nothing", *(n for n in args.only.split(",") if n != "nothing")]
    packages = ["jax", "jaxlib", "numpy", *(p for n in names for p in LOGGERS[n].packages)]
    about = common.machine(packages)
    args.size = common.calibrate(args.workload, args.target)
    runs: dict[str, dict[str, list[Any]]] = {n: {c: [] for c in CASES} for n in names}
    with tempfile.TemporaryDirectory(prefix="usp-rivals-", dir=args.dir) as scratch:
        for turn in range(args.rounds):
            for name in names if turn % 2 == 0 else names[::-1]:
                for case in CASES:
                    print(f"round {turn + 1} of {args.rounds}: {name}, {CASES[case]}", file=sys.stderr)
                    runs[name][case].append(measure(args, name, case, Path(scratch)))
    loggers = {n: {c: summarize(r) for c, r in cases.items()} for n, cases in runs.items()}
    results = {"machine": about, "workload": args.workload, "size": args.size, "loggers": loggers}
    return common.conclude(results, verdicts(results), report, args.json)


if __name__ == "__main__":
    sys.exit(main())
