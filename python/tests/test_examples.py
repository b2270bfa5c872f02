"""The programs in examples/, as a user runs them: what they record verifies, a resumed run has the digests of one
that was not interrupted, and the JAX program agrees with the Go predictor over the same input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jax", reason="the examples need JAX")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))
import parity  # noqa: E402

Runner = Callable[..., str]


@pytest.fixture
def runner(usp_bin: str, ring_dir: Path, run_dir: Path, tmp_path: Path) -> Runner:
    """Runs a program of examples/ in a directory of its own; returns what it prints, on standard error if it is to fail.
    Warnings are errors."""
    env = dict(os.environ) | {"USP_BIN": os.path.abspath(usp_bin), "PYTHONPATH": str(ROOT / "python" / "src")}

    def run(program: str, *arguments: str, status: int = 0) -> str:
        command = [sys.executable, str(ROOT / "examples" / program), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=300)
        assert done.returncode == status, f"{command}\n{done.stdout}\n{done.stderr}"
        assert "Warning" not in done.stderr, done.stderr
        return done.stderr if status else done.stdout

    return run


def usp(binary: str, *arguments: str, status: int = 0) -> Any:
    """What a command of usp says, as JSON."""
    done = subprocess.run([binary, *arguments, "--json"], capture_output=True, text=True, timeout=120)
    assert done.returncode == status, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout)


def whole(report: dict[str, Any], steps: int) -> None:
    """Every step was stored."""
    summary = report["summary"]
    assert (summary["emitted"], summary["stored"], summary["lost"], summary["dropped"]) == (steps, steps, 0, 0)
    assert summary["complete"]


RESUMABLE = [("jax_jko.py", ["--batch", "3", "--emit", "t0"]), ("jax_jko.py", ["--batch", "3", "--emit", "t1"]),
             ("flax_train.py", [])]


@pytest.mark.parametrize(("program", "arguments"), RESUMABLE, ids=["jax_jko-t0", "jax_jko-t1", "flax_train"])
def test_resumed_equals_uninterrupted(program: str, arguments: list[str], runner: Runner, usp_bin: str) -> None:
    """A run that ended at step 35 goes on from the snapshot of step 30, and has bit for bit the digests of one that
    went to step 60 at once. All verify. A snapshot may be dropped where the loop is faster than the disk: then it is
    counted, and the one before is gone on from."""
    def run(*more: str) -> dict[str, Any]:
        return json.loads(runner(program, *arguments, "--snapshot-interval", "10", "--json", *more))

    at_once, begun = run("--steps", "60"), run("--steps", "35")
    whole(at_once, 60)
    whole(begun, 35)
    resumed = run("--steps", "60", "--resume", begun["dir"])
    dropped, first = begun["summary"]["snapshots_dropped"], resumed["first_step"]
    assert first == 31 or dropped and first in (11, 21), begun
    whole(resumed, 61 - first)
    for report in (at_once, begun, resumed):
        usp(usp_bin, "verify", report["dir"])
    c = usp(usp_bin, "compare", at_once["dir"], resumed["dir"])
    assert (c["verdict"], c["common_steps"], c["differing_steps"]) == ("identical", 61 - first, 0)


def test_another_seed_is_another_run(runner: Runner, usp_bin: str) -> None:
    """The check above can fail: what differs is found, and where."""
    dirs = [json.loads(runner("flax_train.py", "--steps", "5", "--seed", seed, "--json"))["dir"] for seed in "12"]
    c = usp(usp_bin, "compare", *dirs, status=22)
    assert c["verdict"] == "parted" and c["first_divergent"]["step"] == 1


@pytest.mark.parametrize("program", ["jax_jko.py", "flax_train.py"])
def test_says_what_comes_next(program: str, runner: Runner, usp_bin: str, tmp_path: Path) -> None:
    """The commands that a program names work on what it has recorded."""
    said = runner(program, "--steps", "20")
    lines = said[said.index("next:"):].splitlines()
    named = [line.split("usp ", 1)[1].split() for line in lines]
    assert [words[0] for words in named] == ["show", "verify"], said
    for words in named:
        done = subprocess.run([usp_bin, *words], capture_output=True, text=True, timeout=120, cwd=tmp_path)
        assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"


@pytest.mark.parametrize(("program", "other"), [("jax_jko.py", "flax_train.py"), ("flax_train.py", "jax_jko.py")])
def test_another_programs_run_is_refused(program: str, other: str, runner: Runner) -> None:
    """What cannot be gone on from is said in one line."""
    run = json.loads(runner(other, "--steps", "10", "--snapshot-interval", "5", "--json"))["dir"]
    for resume, why in [(run, "does not fit the snapshot"), ("nowhere", "nowhere")]:
        said = runner(program, "--steps", "20", "--resume", resume, status=1).strip()
        assert len(said.splitlines()) == 1 and why in said, said


@pytest.mark.parametrize(("series", "step", "floor", "bits"), [("sunspots", "hk", -960, 34), ("nile", "jko", -20, 22)])
def test_parity_with_the_go_predictor(series: str, step: str, floor: int, bits: int, usp_bin: str, ring_dir: Path,
                                      run_dir: Path, tmp_path: Path) -> None:
    """The weights and the transport cost agree in every step, without anything handed over but the experts' forecasts.
    doc/parity.md has to how many bits, and why jko needs a floor; here it is a level or two less, since another machine
    or XLA may differ a little."""
    if not shutil.which("go"):
        pytest.skip("no go, which examples/experts is built with")
    bench = parity.prepare(tmp_path, usp_bin)
    settings = {"USP_ORCHESTRATOR_STEP": step, "USP_DIGEST_FLOOR_BITS": str(floor)}
    go, table = parity.predict(bench, series, settings)
    ours = parity.weigh(bench, table, "--step", step, env=settings)
    usp(usp_bin, "verify", ours)
    c = parity.compare(bench, go, ours)
    assert c["verdict"] in ("agree", "identical"), parity.row(series, c)
    assert c["common_steps"] == len(json.loads(table.read_text())["value"]) and c["a"]["only"] == c["b"]["only"] == 0
    assert c.get("bits", 53) >= bits, parity.row(series, c)
    others = {o["name"]: (o["compared"], o["differ"]) for o in c["others"]}
    assert others["flag flags"] == (c["common_steps"], 0)
