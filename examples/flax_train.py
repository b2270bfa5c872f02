"""Trains a small classifier with Flax and Optax, and records every step with usp.

What a training loop has to add: a dictionary of values that the jitted step returns anyway, `run.emit` and
`run.snapshot`. Neither waits for the device or for a disk. Loss, accuracy, norm of the gradient and learning rate are
metrics; the last layer and a projection of all parameters are digests, so that `usp compare` finds the first step in
which two trainings part, and to how many bits they agreed.

    python examples/flax_train.py                        # 300 steps on three arms of a spiral
    python examples/flax_train.py --resume latest        # goes on behind the newest snapshot, bit for bit
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.flatten_util import ravel_pytree

import usp

BATCH, CLASSES, HIDDEN, SKETCH = 128, 3, 64, 16
State = dict[str, Any]


class Classifier(nn.Module):
    """Two hidden layers with dropout."""

    @nn.compact
    def __call__(self, x: Array, training: bool) -> Array:
        for _ in range(2):
            x = nn.relu(nn.Dense(HIDDEN)(x))
            x = nn.Dropout(0.1, deterministic=not training)(x)
        return nn.Dense(CLASSES, name="head")(x)


def spiral(seed: int, count: int = 3000) -> tuple[Array, Array]:
    """Points (count, 2) on the arms of a spiral, and the arm of each (count,)."""
    rng = np.random.default_rng(seed)
    arm = np.arange(count) % CLASSES
    radius = rng.uniform(0.1, 1, count)
    angle = 2 * np.pi * (arm / CLASSES + 0.8 * radius) + rng.normal(0, 0.15, count)
    points = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return jnp.asarray(points, jnp.float32), jnp.asarray(arm, jnp.int32)


def begin(model: Classifier, optimizer: optax.GradientTransformation, seed: int) -> State:
    """Everything that the loop goes on from, as one pytree; the key as its data, which every checkpoint can hold."""
    key, init = jax.random.split(jax.random.key(seed))
    params = model.init(init, jnp.zeros((1, 2)), training=False)["params"]
    return {"params": params, "opt_state": optimizer.init(params), "rng": jax.random.key_data(key),
            "step": jnp.zeros((), jnp.int32)}


def make_step(model: Classifier, optimizer: optax.GradientTransformation, schedule: optax.Schedule, points: Array,
              labels: Array, projection: Array) -> Any:
    """The jitted step: the next state, and the values to record."""

    @jax.jit
    def train_step(state: State) -> tuple[State, dict[str, Array]]:
        key, pick, drop = jax.random.split(jax.random.wrap_key_data(state["rng"]), 3)
        rows = jax.random.randint(pick, (BATCH,), 0, len(points))

        def loss_of(params: Any) -> tuple[Array, Array]:
            logits = model.apply({"params": params}, points[rows], training=True, rngs={"dropout": drop})
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]).mean()
            return loss, (logits.argmax(axis=1) == labels[rows]).mean()

        (loss, accuracy), gradient = jax.value_and_grad(loss_of, has_aux=True)(state["params"])
        updates, opt_state = optimizer.update(gradient, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        values = {"loss": loss, "accuracy": accuracy, "grad_norm": optax.global_norm(gradient),
                  "learning_rate": schedule(state["step"]), "head": params["head"]["kernel"].reshape(-1),
                  "sketch": projection @ ravel_pytree(params)[0]}
        return {"params": params, "opt_state": opt_state, "rng": jax.random.key_data(key),
                "step": state["step"] + 1}, values

    return train_step


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Trains to step args.steps; returns what there is to say of it."""
    points, labels = spiral(args.seed)
    model = Classifier()
    schedule = optax.cosine_decay_schedule(args.learning_rate, args.horizon)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))
    state, first = begin(model, optimizer, args.seed), 0
    if args.resume:
        state, first = usp.restore(args.resume, like=state)
    size = ravel_pytree(state["params"])[0].size
    projection = jax.random.rademacher(jax.random.key(0), (SKETCH, size), jnp.float32) / np.sqrt(size)
    train_step = make_step(model, optimizer, schedule, points, labels, projection)

    # Lengths and types that are not declared are taken from the first values that are emitted.
    fields = usp.fields(loss="metric", accuracy="metric", grad_norm="metric", learning_rate="metric", head="digest",
                        sketch="digest")
    values: dict[str, Array] = {}
    producer = {"program": "flax_train", "seed": args.seed}
    with usp.Run(args.config, fields=fields, name="flax_train.v1", producer=producer,
                 state=state, save_interval_steps=args.snapshot_interval) as run:
        for step in range(first + 1, args.steps + 1):
            state, values = train_step(state)
            run.emit(step, values)
            run.snapshot(step, state)
    report = {"run": run.id, "dir": str(run.dir), "first_step": first + 1, "last_step": args.steps}
    report |= {k: float(values[k]) for k in ("loss", "accuracy") if values}
    return report | {"summary": dict(run.summary)}


def main(argv: list[str] | None = None) -> int:
    """Trains, and prints what was recorded."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--steps", type=int, default=300, help="the last step")
    p.add_argument("--horizon", type=int, default=300, help="steps over which the learning rate falls to zero")
    p.add_argument("--learning-rate", type=float, default=0.01)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--snapshot-interval", type=int, default=50, help="steps between snapshots")
    p.add_argument("--resume", help="run whose newest snapshot to go on from, in a new run")
    p.add_argument("--config", help="settings file (default: usp.toml here)")
    p.add_argument("--json", action="store_true", help="print JSON")
    args = p.parse_args(argv)
    try:
        report = train(args)
    except (usp.ConfigError, usp.RecorderError, usp.RingError, usp.SnapshotError) as err:
        print(f"flax_train: {err}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps(report))
        return 0
    if "loss" in report:
        print(f"step {args.steps}: loss {report['loss']:.4f}, accuracy {report['accuracy']:.3f}")
    s = report["summary"]
    print(f"recorded in {report['dir']}: {s['stored']} steps, {s['lost']} lost, {s['snapshots']} snapshots")
    print(f"next: usp show {report['run']}\n      usp verify {report['run']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
