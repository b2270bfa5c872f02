"""Measures how far the same computation agrees between the Go predictor and JAX, and between two JAX programs.

For each shipped series: `usp run` predicts it; examples/experts writes what each of the predictor's experts forecast;
examples/jax_jko.py weighs the same forecasts from the same beliefs, on its own, to the end; `usp compare` holds the two
runs against each other. Then the same JAX program is run again, with one thing changed each time. Prints a table in
Markdown, which is that of doc/parity.md.

    USP_BIN=usp python examples/parity.py
    USP_BIN=usp python examples/parity.py --gpu            # with rows for an NVIDIA GPU against the CPU

Needs the usp program and Go. Everything is written to a temporary directory.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
SERIES = {"sunspots": 11, "nile": 0, "co2": 52, "gdp": 4, "unemployment": 4}  # and values in one period (0: find one)
FIELDS = "rho,ot_cost_digest"

# What is changed about the JAX program, from its run on sunspots: arguments and environment.
CHANGES: dict[str, tuple[list[str], dict[str, str]]] = {
    "run again": ([], {}),
    "one `lax.scan`, records from inside it (T1)": (["--emit", "t1"], {}),
    "series 0 in a batch of 8": (["--batch", "8"], {}),
    "one thread": ([], {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false", "OMP_NUM_THREADS": "1"}),
    "two CPU devices": ([], {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}),
    "instructions up to AVX2": ([], {"XLA_FLAGS": "--xla_cpu_max_isa=AVX2"}),
    "instructions up to SSE4.2": ([], {"XLA_FLAGS": "--xla_cpu_max_isa=SSE4_2"}),
    "no optimisation": ([], {"XLA_FLAGS": "--xla_backend_optimization_level=0"}),
    "fast mathematics": ([], {"XLA_FLAGS": "--xla_cpu_enable_fast_math=true"}),
    "float32": (["--dtype", "float32"], {}),
}


class Bench(NamedTuple):
    """Where things are."""

    usp: str
    experts: str  # the program built from examples/experts
    work: Path
    env: dict[str, str]

    def run(self, command: list[str], env: Mapping[str, str] | None = None, fine: tuple[int, ...] = (0,)) -> str:
        """Standard output of a command that ends with one of the statuses given."""
        done = subprocess.run(command, capture_output=True, text=True, env=self.env | dict(env or {}), cwd=self.work)
        if done.returncode not in fine:
            raise SystemExit(f"parity: {' '.join(command)}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout


def prepare(work: Path, usp: str | None = None) -> Bench:
    """Builds examples/experts, and sees that nothing is written outside work but rings."""
    found = usp or os.environ.get("USP_BIN") or shutil.which("usp")
    if not found or not shutil.which("go"):
        raise SystemExit("parity: needs the usp program (USP_BIN, or in PATH) and go")
    env = dict(os.environ) | {
        "USP_BIN": os.path.abspath(found), "USP_DIR": str(work / "runs"), "USP_RECORDER_KEY_FILE": str(work / "key"),
        "PYTHONPATH": os.pathsep.join([str(ROOT / "python" / "src"), os.environ.get("PYTHONPATH", "")]),
    }
    bench = Bench(os.path.abspath(found), str(work / "experts"), work, env)
    subprocess.run(["go", "build", "-o", bench.experts, "./examples/experts"], cwd=ROOT, check=True)
    return bench


def predict(bench: Bench, series: str, settings: Mapping[str, str] | None = None) -> tuple[str, Path]:
    """The run directory of `usp run` on a series, and the table of its experts' forecasts."""
    csv, season = str(ROOT / "internal" / "examples" / f"{series}.csv"), str(SERIES[series])
    command = [bench.usp, "run", csv, "--season", season, "--progress", "none", "--json"]
    said = bench.run(command, settings)
    table = bench.work / f"{series}.json"
    table.write_text(bench.run([bench.experts, "-season", season, csv]), encoding="utf-8")
    return str(bench.work / json.loads(said.splitlines()[-1])["run_dir"]), table


def weigh(bench: Bench, table: Path, *arguments: str, env: Mapping[str, str] | None = None) -> str:
    """The run directory of the JAX program on a table of forecasts."""
    program = [sys.executable, str(ROOT / "examples" / "jax_jko.py"), "--experts", str(table), "--json"]
    report = json.loads(bench.run([*program, *arguments], env))
    if report["summary"]["lost"] or report["summary"]["stored"] != report["summary"]["emitted"]:
        raise SystemExit(f"parity: {report['dir']} is not whole: {report['summary']}")
    return report["dir"]


def compare(bench: Bench, a: str, b: str) -> dict[str, Any]:
    """What `usp compare` says of two runs."""
    return json.loads(bench.run([bench.usp, "compare", a, b, "--field", FIELDS, "--json"], fine=(0, 22)))


def cell(c: Mapping[str, Any], name: str) -> str:
    """How far a field agrees."""
    field = next(f for f in c["fields"] if f["name"] == name)
    if not field["differ"]:
        return "identical"
    return f"{field['bits']} bits (step {field['bits_at']})"


def row(label: str, c: Mapping[str, Any]) -> str:
    """A line of the table."""
    first = c.get("first_divergent")
    where = f"{first['step']}, {first['field']}" if first else "none"
    flags = next((o for o in c["others"] if o["name"].startswith("flag")), None)
    same = "not compared"
    if flags is not None:
        same = f"differ from step {flags['first_step']}" if flags["differ"] else "equal"
    return (f"| {label} | {c['verdict']} | {cell(c, 'rho')} | {cell(c, 'ot_cost_digest')} | {where} | "
            f"{c['differing_steps']} of {c['common_steps']} | {same} |")


def sensitivity(table: Path, step: str, draws: int = 5) -> float:
    """To how many bits the weights agree with those of the same program on the same input, each number of it left alone
    or moved to the next float64 beside it, in the worst of some draws. No other program can be asked for more."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import orchestrator

    rng, worst = np.random.default_rng(1), 0.0
    given = json.loads(table.read_text(encoding="utf-8"))
    with jax.enable_x64(True):
        config = orchestrator.Config(step=step, sinkhorn_iterations=0)
        inputs = [np.array(given[k], float) for k in ("value", "forecast")]
        state = orchestrator.new_state(jnp.array(given["belief"]), config)

        @jax.jit
        def weights(values: jax.Array, forecasts: jax.Array) -> jax.Array:
            inputs = (values, forecasts)
            return jax.lax.scan(lambda s, x: orchestrator.orchestrate(config, s, *x), state, inputs)[1]["rho"]

        whole = np.asarray(weights(*inputs))
        for _ in range(draws):
            beside = [np.nextafter(x, x + rng.integers(-1, 2, x.shape)) for x in inputs]
            moved = np.asarray(weights(*beside))
            with np.errstate(invalid="ignore"):
                worst = max(worst, float(np.nanmax(np.abs(whole - moved) / np.maximum(whole, moved))))
    return -math.log2(worst) if worst else 53.0


HEAD = """| {} | verdict | ρ agrees to | OT cost agrees to | first divergent step | steps that differ | flags |
| --- | --- | --- | --- | --- | --- | --- |"""


def measure(bench: Bench, gpu: bool) -> None:
    """Prints both tables."""
    names, rule = HEAD.format("JAX against the Go predictor").splitlines()
    print(f"{names} JAX against itself, input off by a rounding |\n{rule} --- |", flush=True)
    for series in SERIES:
        for step, floor in (("hk", None), ("jko", None), ("jko", -20)):
            # Below the floor a number counts as zero; both sides must have the same one.
            settings = {"USP_ORCHESTRATOR_STEP": step} | ({"USP_DIGEST_FLOOR_BITS": str(floor)} if floor else {})
            go, table = predict(bench, series, settings)
            c = compare(bench, go, weigh(bench, table, "--step", step, env=settings))
            label = f"{series}, `{step}`" + (f", floor 2^{floor}" if floor else "")
            moved = "" if floor else f"{sensitivity(table, step):.1f} bits"
            print(row(label, c) + f" {moved} |", flush=True)
    print("\n" + HEAD.format("JAX against JAX, sunspots, `hk`"), flush=True)
    _, table = predict(bench, "sunspots")
    base = weigh(bench, table)
    changes = dict(CHANGES)
    if gpu:
        changes["GPU"] = ([], {"JAX_PLATFORMS": "cuda"})
        changes["GPU, one `lax.scan` (T2)"] = (["--emit", "t1"], {"JAX_PLATFORMS": "cuda"})
    for label, (arguments, env) in changes.items():
        c = compare(bench, base, weigh(bench, table, *arguments, env=env))
        how = "".join(f", `{d['b']}`" for d in c["environment"] or () if d["key"] == "xla.flags")
        print(row(label + how, c), flush=True)


def main() -> int:
    """Measures in a directory that is gone afterwards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="also on an NVIDIA GPU, by JAX with CUDA")
    args = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"  # of this process, and of what it starts unless it says otherwise
    with tempfile.TemporaryDirectory(prefix="usp-parity-") as work:
        measure(prepare(Path(work)), args.gpu)
    return 0


if __name__ == "__main__":
    sys.exit(main())
