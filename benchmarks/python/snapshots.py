"""Snapshots of a pytree: usp beside Orbax's asynchronous CheckpointManager, in one process, taking turns.

For each size of state it measures, in milliseconds,

  ready      how long the call holds the step loop up when the state is computed already
  in flight  the same when the step that makes the state was only dispatched, and donates the one before it
  durable    from the call until the snapshot is complete: usp's recorder has it synced, read back and in its log;
             Orbax's wait_until_finished returned (it syncs neither its marker nor the directory)
  restore    into jax arrays like the state's, from the page cache; usp checks SHA-256 of all bytes meanwhile

and prints the median of each, and usp's in relation to Orbax's. Exits with 1 if one of the bounds is missed: ready at
most 1/5 at 1 MiB, and nothing above 1.

  USP_BIN=... python benchmarks/python/snapshots.py [--sizes 1,64,1024] [--rounds 5] [--dir DIR]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python" / "src"))

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

import usp

LAYERS = 8  # of four leaves each
MEASURES = ("ready", "in flight", "durable", "restore")


def make_state(mib: int) -> dict[str, Any]:
    """Parameters of a network and one moment of each: 32 leaves, of which half hold nearly all the bytes."""
    floats = mib * (1 << 20) // 4
    width = int((floats / (2 * LAYERS)) ** 0.5)
    keys = iter(jax.random.split(jax.random.key(0), 2 * LAYERS))

    def layers() -> dict[str, Any]:
        return {
            f"layer{i}": {"kernel": jax.random.normal(next(keys), (width, width)), "bias": jnp.zeros(width)}
            for i in range(LAYERS)
        }

    state = {"params": layers(), "moment": layers()}
    jax.block_until_ready(state)
    return state


@jax.jit
def fresh(state: Any) -> Any:
    """A state in new memory."""
    return jax.tree.map(lambda a: a * 0.999 + 1e-6, state)


donating = jax.jit(lambda state: jax.tree.map(lambda a: a * 0.999 + 1e-6, state), donate_argnums=0)


class Usp:
    """usp's way: the run's snapshot, its recorder, restore."""

    name = "usp"

    def __init__(self, directory: str, state: Any) -> None:
        self.run = usp.Run(
            fields=(usp.Field("loss", "metric", "f64", 1),), state=state, dir=directory, save_interval_steps=1, max_to_keep=2,
        )  # fmt: skip
        self.step = 0

    def save(self, state: Any) -> None:
        self.step += 1
        self.run.emit(self.step, {"loss": 1.0})
        if not self.run.snapshot(self.step, state):
            raise SystemExit("usp dropped a snapshot")

    def wait(self) -> None:
        ring = self.run._session.ring  # type: ignore[union-attr]
        while ring.consumer().snapshots < self.step:
            time.sleep(0.0005)

    def restore(self, state: Any) -> Any:
        found, step = usp.restore(self.run, like=state)
        assert step == self.step
        return found

    def close(self) -> None:
        self.run.close()


class Orbax:
    """Orbax's way: the manager with its default options for asynchronous saves."""

    name = "orbax"

    def __init__(self, directory: str, state: Any) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=2, save_interval_steps=1, enable_async_checkpointing=True)
        self.manager = ocp.CheckpointManager(directory, options=options)
        self.step = 0

    def save(self, state: Any) -> None:
        self.step += 1
        if not self.manager.save(self.step, args=ocp.args.StandardSave(state)):
            raise SystemExit("Orbax skipped a checkpoint")

    def wait(self) -> None:
        self.manager.wait_until_finished()

    def restore(self, state: Any) -> Any:
        like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), state)
        return self.manager.restore(self.step, args=ocp.args.StandardRestore(like))

    def close(self) -> None:
        self.manager.close()


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds, and what the call returned."""
    begin = time.perf_counter()
    result = call()
    return (time.perf_counter() - begin) * 1e3, result


def turn(one: Any, state: Any, times: dict[str, list[float]]) -> None:
    """One round of one of them, nothing else under way."""
    begin = time.perf_counter()
    one.save(state)
    times["ready"].append((time.perf_counter() - begin) * 1e3)
    one.wait()
    times["durable"].append((time.perf_counter() - begin) * 1e3)
    took, found = timed(lambda: jax.block_until_ready(one.restore(state)))
    times["restore"].append(took)
    if not all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), found, state))):
        raise SystemExit(f"{one.name} restored another state")
    del found
    flying = jax.block_until_ready(fresh(state))
    flying = donating(flying)
    took, _ = timed(lambda: one.save(flying))
    times["in flight"].append(took)
    flying = donating(flying)
    jax.block_until_ready(flying)
    one.wait()


def measure(mib: int, rounds: int, directory: str) -> dict[str, dict[str, float]]:
    """The medians of both at one size."""
    state = make_state(mib)
    jax.block_until_ready(donating(fresh(state)))
    pair = [kind(os.path.join(directory, kind.name), state) for kind in (Usp, Orbax)]
    times = {one.name: {m: [] for m in MEASURES} for one in pair}
    for i in range(rounds + 1):
        for one in pair if i % 2 else reversed(pair):
            turn(one, state, times[one.name])
    for one in pair:
        one.close()
    # The first round compiles and makes directories.
    return {name: {m: statistics.median(v[1:]) for m, v in each.items()} for name, each in times.items()}


def main() -> int:
    """Prints the table; with --json one line for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1,64,1024", help="MiB")
    parser.add_argument("--rounds", type=int, default=0, help="default 15, and 3 above 256 MiB")
    parser.add_argument("--dir", default=None, help="on the disk to measure")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    logging.getLogger("absl").setLevel(logging.ERROR)
    missed = 0
    print(f"{'MiB':>6}  {'':<10}" + "".join(f"{m:>12}" for m in MEASURES))
    for mib in map(int, args.sizes.split(",")):
        directory = tempfile.mkdtemp(prefix="usp-bench-", dir=args.dir)
        os.environ["USP_RECORDER_KEY_FILE"] = os.path.join(directory, "signing.key")
        try:
            medians = measure(mib, args.rounds or (15 if mib <= 256 else 3), directory)
        finally:
            shutil.rmtree(directory)
        for name, row in medians.items():
            print(f"{mib:>6}  {name:<10}" + "".join(f"{row[m]:>12.2f}" for m in MEASURES))
        ratios = {m: medians["usp"][m] / medians["orbax"][m] for m in MEASURES}
        print(f"{mib:>6}  {'ratio':<10}" + "".join(f"{ratios[m]:>12.3f}" for m in MEASURES), flush=True)
        if args.json:
            print(json.dumps({"mib": mib, "ms": medians, "ratio": ratios}))
        missed += sum(r > 1 for r in ratios.values()) + (mib == 1 and ratios["ready"] > 0.2)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
