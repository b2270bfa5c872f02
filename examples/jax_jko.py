"""Forecasts many series at once in JAX and records every step with usp.

A few simple experts forecast each series; examples/orchestrator.py weighs them. Series 0 is a real one, the others
synthetic. What is recorded: the weights of series 0 and their transport cost as digests (with a batch also the weights
of all the others), the charts, entropy and loss as metrics, the regime flags. The loop never waits for any of it.

    python examples/jax_jko.py                                # one jitted call per step, usp.Run.emit (T0)
    python examples/jax_jko.py --emit t1 --batch 64           # one lax.scan, records written from inside it (T1)
    python examples/jax_jko.py --resume latest                # goes on behind the newest snapshot

With --experts FILE (written by examples/experts) it weighs the forecasts of the Go predictor's own experts instead, and
`usp compare` says how far the weights agree with those of `usp run`: see doc/parity.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

import orchestrator
from orchestrator import ALARM_DOWN, ALARM_UP, ALARM_VARIANCE, State, choose
import usp

SUNSPOTS = Path(__file__).resolve().parents[1] / "internal" / "examples" / "sunspots.csv"
EXPERTS = ("naive", "drift", "ses", "mean", "seasonal", "ar")
LAGS = 3  # of the autoregression, beside the season's and a constant
FORGETTING = 0.998

# What is recorded, by class. Digests of steps go into the signed log; metrics are stored as they are.
CLASSES = {
    "cusum_pos": "metric", "cusum_neg": "metric", "cusum_var": "metric", "entropy": "metric",
    "mixture_share": "metric", "loss": "metric", "epsilon": "metric", "sinkhorn": "metric", "ot_cost": "metric",
    "alarms": "metric", "flags": "flag", "rho": "digest", "ot_cost_digest": "digest", "rho_batch": "digest",
}


class Data(NamedTuple):
    """What the loop reads: values (T, B), and forecasts (T, B, N) made after each for the next, or None for the
    experts below."""

    values: Array
    forecasts: Array | None


# -- input --------------------------------------------------------------------------------------------------------


def synthetic(steps: int, count: int, seed: int) -> np.ndarray:
    """(steps, count) values of autoregressions with a season of 11 whose level jumps now and then. More steps are the
    same series, longer: each kind of draw has a stream of its own, row by row."""
    once, height, when, noises = (np.random.default_rng([seed, k]) for k in range(4))
    phase, strength = once.uniform(0, 2 * np.pi, count), once.uniform(0, 3, count)
    level = np.cumsum(height.normal(0, 4, (steps, count)) * (when.random((steps, count)) < 0.005), axis=0)
    noise, values = noises.normal(0, 1, (steps, count)), np.zeros((steps, count))
    for t in range(steps):
        before = values[t - 1] if t else 0
        values[t] = 0.7 * before + noise[t]
    return 20 + level + values + strength * np.sin(2 * np.pi * np.arange(steps)[:, None] / 11 + phase)


def load(args: argparse.Namespace) -> tuple[Data, np.ndarray]:
    """The input, and the weights of the experts before any evidence."""
    dtype = np.dtype(args.dtype)
    if args.experts:
        with open(args.experts, encoding="utf-8") as file:
            table = json.load(file)
        values, made = np.array(table["value"], float), np.array(table["forecast"], float)
        n = min(args.steps or len(values), len(values))
        # The other series of a batch are this one, moved and stretched: a batch must not change what series 0 gives.
        shift, stretch = np.arange(args.batch), 1 + 0.25 * np.arange(args.batch)
        wide = values[:n, None] * stretch + shift
        made = made[:n, None, :] * stretch[:, None] + shift[:, None]
        return Data(jnp.asarray(wide.astype(dtype)), jnp.asarray(made.astype(dtype))), np.array(table["belief"], dtype)
    belief = np.full(len(EXPERTS), 1 / len(EXPERTS), dtype)
    if args.synthetic:
        return Data(jnp.asarray(synthetic(args.steps or 1000, args.batch, args.seed).astype(dtype)), None), belief
    with open(args.csv, encoding="utf-8", newline="") as file:
        values = np.array([float(row["value"]) for row in csv.DictReader(file)])
    n = min(args.steps or len(values), len(values))
    wide = np.concatenate([values[:n, None], synthetic(n, args.batch - 1, args.seed)], axis=1)
    return Data(jnp.asarray(wide.astype(dtype)), None), belief


# -- experts, of one series ---------------------------------------------------------------------------------------


def new_experts(season: int, dtype: Any) -> State:
    """Experts that have seen nothing. recent holds the newest values, newest first."""
    zero, width = jnp.zeros((), dtype), LAGS + 2
    return {"recent": jnp.zeros(max(season, LAGS) + 1, dtype), "n": zero, "first": zero, "ses": zero, "mean": zero,
            "ar": {"weights": jnp.zeros(width, dtype), "spread": 100 * jnp.eye(width, dtype=dtype)}}


def regressors(recent: Array, season: int, size: Array) -> Array:
    """A constant, the newest values and the one a season before the next, in units of the series' size."""
    return jnp.concatenate([jnp.ones(1, recent.dtype), recent[:LAGS] / size, recent[season - 1][None] / size])


def recursive_least_squares(s: State, x: Array, target: Array) -> State:
    """Takes a row and its target into the weights of the autoregression."""
    spread = s["spread"]
    px = jnp.sum(spread * x, axis=1)
    gain = px / (FORGETTING + jnp.sum(x * px))
    spread = (spread - gain[:, None] * px[None, :]) / FORGETTING
    return {"weights": s["weights"] + gain * (target - jnp.sum(x * s["weights"])),
            "spread": (spread + spread.T) / 2}  # rounding must not make it lean


def experts(s: State, y: Array, season: int) -> tuple[State, Array]:
    """Shows the experts the value y; returns their forecasts of the next one, in the order of EXPERTS."""
    n = s["n"] + 1
    first = jnp.where(n == 1, y, s["first"])
    ses = jnp.where(n == 1, y, s["ses"] + 0.3 * (y - s["ses"]))
    mean = s["mean"] + (y - s["mean"]) / n
    ready = n > season + 1
    size = jnp.maximum(jnp.abs(s["mean"]), 1e-30)
    learned = recursive_least_squares(s["ar"], regressors(s["recent"], season, size), y / size)
    ar = choose(ready, learned, s["ar"])
    recent = jnp.concatenate([y[None], s["recent"][:-1]])
    size = jnp.maximum(jnp.abs(mean), 1e-30)
    projected = size * jnp.sum(ar["weights"] * regressors(recent, season, size))
    forecasts = jnp.stack([
        y, y + (y - first) / jnp.maximum(1, n - 1), ses, mean, jnp.where(n >= season, recent[season - 1], y),
        jnp.where(ready, projected, y),
    ])
    return {"recent": recent, "n": n, "first": first, "ses": ses, "mean": mean, "ar": ar}, forecasts


# -- the step, of all series --------------------------------------------------------------------------------------


class Model(NamedTuple):
    """What does not change from step to step."""

    config: orchestrator.Config
    season: int


def new_state(model: Model, belief: np.ndarray, batch: int) -> State:
    """The state of all series before their first value: a pytree whose leaves have a leading axis of length batch."""
    one = {"orchestrator": orchestrator.new_state(jnp.asarray(belief), model.config),
           "experts": new_experts(model.season, belief.dtype),
           "errors": {"mixture": jnp.zeros((), belief.dtype), "naive": jnp.zeros((), belief.dtype)}}
    return jax.tree.map(lambda x: jnp.repeat(x[None], batch, axis=0), one)


def step_one(model: Model, s: State, y: Array, forecasts: Array | None) -> tuple[State, dict[str, Array]]:
    """One step of one series."""
    watched, before = s["experts"], s["orchestrator"]
    if forecasts is None:
        watched, forecasts = experts(watched, y, model.season)
    after, tell = orchestrator.orchestrate(model.config, before, y, forecasts)
    judged = before["steps"] > 0
    errors = {"mixture": s["errors"]["mixture"] + jnp.where(judged, (y - before["forecast"]) ** 2, 0),
              "naive": s["errors"]["naive"] + jnp.where(judged, (y - before["previous"]) ** 2, 0)}
    return {"orchestrator": after, "experts": watched, "errors": errors}, tell


def step_all(model: Model, state: State, data: Data, i: Array) -> tuple[State, dict[str, Array]]:
    """One step of all series on row i of the data: the state, and the values of the record."""
    values = data.values[i]
    forecasts = None if data.forecasts is None else data.forecasts[i]
    axes = (0, 0, None if forecasts is None else 0)
    state, tell = jax.vmap(lambda s, y, f: step_one(model, s, y, f), in_axes=axes)(state, values, forecasts)
    flags, rho = tell["flags"], tell["rho"]
    record = {k: x[0] for k, x in tell.items()}
    alarms = jnp.sum((flags & (ALARM_UP | ALARM_DOWN | ALARM_VARIANCE)) != 0)
    record |= {"loss": jnp.mean(tell["loss"]), "alarms": alarms.astype(rho.dtype), "flags": flags[0].astype(jnp.uint64),
               "ot_cost_digest": tell["ot_cost"][0]}
    if rho.shape[0] > 1:
        record["rho_batch"] = rho[1:].reshape(-1)
    return state, record


# -- the loop -----------------------------------------------------------------------------------------------------


def declare(model: Model, state: State, data: Data) -> Any:
    """The fields of a record, with lengths and types from the step itself, which is traced and not run."""
    _, record = jax.eval_shape(lambda s, d, i: step_all(model, s, d, i), state, data, jnp.asarray(0))
    return usp.fields(**{k: usp.field(CLASSES[k], x.shape, x.dtype) for k, x in record.items()})


def loop_t0(run: usp.Run | None, model: Model, state: State, data: Data, first: int, last: int) -> State:
    """One jitted call per step. The record leaves it as one array, and the device behind the loop's back."""

    @jax.jit
    def step(state: State, data: Data, i: Array) -> tuple[State, Any]:
        state, record = step_all(model, state, data, i)
        return state, record if run is None else run.pack(record)

    for i in range(first, last):
        state, record = step(state, data, i)
        if run is not None:
            run.emit(i + 1, record)
            run.snapshot(i + 1, state)
    return state


def loop_t1(run: usp.Run, model: Model, state: State, data: Data, first: int, last: int, interval: int) -> State:
    """One lax.scan from snapshot to snapshot; the compiled program writes the records itself."""

    def body(state: State, i: Array) -> tuple[State, None]:
        state, record = step_all(model, state, data, i)
        run.emit_traced(i + 1, record)
        return state, None

    scan = jax.jit(lambda s, rows: lax.scan(body, s, rows)[0])
    while first < last:
        end = min(last, first - first % interval + interval)
        state = scan(state, jnp.arange(first, end))
        run.snapshot(end, state)
        first = end
    return state


def forecast(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the whole program; returns what there is to say of it."""
    data, belief = load(args)
    model = Model(orchestrator.Config(step=args.step, sinkhorn_iterations=args.sinkhorn), args.season)
    state, first, last = new_state(model, belief, args.batch), 0, len(data.values)
    if args.resume:
        state, first = usp.restore(args.resume, like=state)
    report: dict[str, Any] = {"emit": args.emit, "batch": args.batch, "first_step": first + 1, "last_step": last}
    started = time.perf_counter()
    if args.emit == "none":
        state = jax.block_until_ready(loop_t0(None, model, state, data, first, last))
    else:
        producer = {"program": "jax_jko"} | {k: getattr(args, k) for k in ("step", "batch", "dtype", "emit", "seed")}
        with usp.Run(args.config, fields=declare(model, state, data), name="jax_jko.v1", producer=producer,
                     state=state, save_interval_steps=args.snapshot_interval) as run:
            report |= {"run": run.id, "dir": str(run.dir)}
            if args.emit == "t0":
                state = loop_t0(run, model, state, data, first, last)
            else:
                state = loop_t1(run, model, state, data, first, last, args.snapshot_interval)
            jax.block_until_ready(state)
        report["summary"] = dict(run.summary)
    ratio = np.sqrt(np.asarray(state["errors"]["mixture"]) / np.asarray(state["errors"]["naive"]))
    return report | {"seconds": time.perf_counter() - started, "rmse_to_naive": float(ratio[0]),
                     "rmse_to_naive_median": float(np.median(ratio)),
                     "weights": np.asarray(state["orchestrator"]["weights"][0]).tolist()}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--emit", choices=("t0", "t1", "none"), default="t0", help="how records leave the device")
    p.add_argument("--steps", type=int, default=0, help="at most so many (0: all of the series; 1000 if synthetic)")
    p.add_argument("--batch", type=int, default=1, help="series")
    p.add_argument("--step", choices=("hk", "jko"), default="hk", help="how weights move")
    p.add_argument("--sinkhorn", type=int, default=50, help="iterations at most of the metric sinkhorn (0: none)")
    p.add_argument("--csv", type=Path, default=SUNSPOTS, help="series 0: a CSV file with a column value")
    p.add_argument("--season", type=int, default=11, help="values in one period, for the seasonal experts")
    p.add_argument("--synthetic", action="store_true", help="series 0 is synthetic too")
    p.add_argument("--experts", type=Path, help="forecasts of the Go predictor's experts, by examples/experts")
    p.add_argument("--dtype", choices=("float64", "float32"), default="float64")
    p.add_argument("--seed", type=int, default=1, help="of the synthetic series")
    p.add_argument("--snapshot-interval", type=int, default=100, help="steps between snapshots")
    p.add_argument("--resume", help="run whose newest snapshot to go on from, in a new run")
    p.add_argument("--config", type=Path, help="settings file (default: usp.toml here)")
    p.add_argument("--json", action="store_true", help="print JSON")
    args = p.parse_args(argv)
    if args.batch < 1 or args.steps < 0 or args.snapshot_interval < 1 or args.season < 1:
        p.error("--batch, --snapshot-interval and --season are at least 1, --steps is not negative")
    return args


def main(argv: list[str] | None = None) -> int:
    """Runs the program and prints what was recorded."""
    args = parse(argv)
    jax.config.update("jax_enable_x64", True)
    try:
        report = forecast(args)
    except (usp.FieldError, usp.StepError, usp.ClosedError):
        raise  # a mistake in this program
    except usp.Error as err:
        print(f"jax_jko: {err}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(report))
        return 0
    steps = report["last_step"] - report["first_step"] + 1
    print(f"{steps} steps of {args.batch} series in {report['seconds']:.2f} s, compilation included")
    print(f"error to naive: series 0 {report['rmse_to_naive']:.3f}, median {report['rmse_to_naive_median']:.3f}")
    if "run" in report:
        s = report["summary"]
        print(f"recorded in {report['dir']}: {s['stored']} steps, {s['lost']} lost, {s['snapshots']} snapshots")
        print(f"next: usp show {report['run']}\n      usp verify {report['run']}")
        if args.experts:
            print(f"      usp compare RUN-OF-USP-RUN {report['run']} --field rho,ot_cost_digest")
    return 0


if __name__ == "__main__":
    sys.exit(main())
