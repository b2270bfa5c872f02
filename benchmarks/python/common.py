"""What the benchmarks share: real jitted steps, what their times amount to, and on what they were measured.

Steps are compiled for the CPU in float64. A step takes (state, number) and gives the next such pair and its telemetry:
six scalars and a vector of four weights that sum to one.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_ENABLE_X64", "1")

SCALARS = ("loss", "cost", "entropy", "drift", "residual", "mass")
WEIGHTS = 4
RESAMPLES = 500

Body = Callable[[Any], tuple[Any, dict[str, Any]]]  # (state, number) -> (state, number), telemetry


def transport(size: int) -> tuple[Body, Any]:
    """A step of optimal transport: size iterations of Sinkhorn's scaling between two histograms of 48 bins.

    Many small operations in a loop, which XLA runs in one thread.
    """
    import jax
    import jax.numpy as jnp

    bins = 48
    x = np.linspace(0, 1, bins)
    cost = jnp.asarray((x[:, None] - x[None]) ** 2)
    kernel = jnp.exp(-cost / 0.05)

    def body(carry: Any) -> tuple[Any, dict[str, Any]]:
        rho, number = carry
        goal = jnp.exp(-((x - 0.5 - 0.3 * jnp.sin(0.01 * number)) ** 2) / 0.02)
        goal = goal / goal.sum()

        def scale(_: Any, uv: Any) -> Any:
            v = goal / (kernel.T @ uv[0])
            return rho / (kernel @ v), v

        u, v = jax.lax.fori_loop(0, size, scale, (jnp.ones(bins), jnp.ones(bins)))
        plan = u[:, None] * kernel * v[None]
        new = 0.9 * rho + 0.1 * plan.sum(0)
        new = new / new.sum()
        tele = {
            "loss": jnp.sum((new - goal) ** 2), "cost": jnp.sum(plan * cost), "entropy": -jnp.sum(new * jnp.log(new)),
            "drift": jnp.sum(x * new), "residual": jnp.max(jnp.abs(plan.sum(1) - rho)), "mass": plan.sum(),
            "rho": new.reshape(WEIGHTS, -1).sum(1),
        }  # fmt: skip
        return (new, number + 1), tele

    return body, (jnp.ones(bins) / bins, jnp.zeros((), jnp.int64))


def training(size: int) -> tuple[Body, Any]:
    """A step of training: forward and backward through two layers of 128, a batch of size, gradient descent.

    Matrix products, for which XLA may take all cores.
    """
    import jax
    import jax.numpy as jnp

    width = 128
    key = jax.random.key(7)
    layers = tuple(jax.random.normal(jax.random.fold_in(key, i), (width, width)) / width**0.5 for i in range(2))
    batch = jax.random.normal(jax.random.fold_in(key, 2), (size, width))

    def loss(layers: Any) -> Any:
        hidden = jnp.tanh(batch @ layers[0])
        return jnp.mean((hidden @ layers[1] - batch) ** 2), jnp.mean(hidden**2, 0)

    def body(carry: Any) -> tuple[Any, dict[str, Any]]:
        layers, number = carry
        (value, active), grads = jax.value_and_grad(loss, has_aux=True)(layers)
        new = tuple(a - 0.05 * g for a, g in zip(layers, grads, strict=True))
        rho = active.reshape(WEIGHTS, -1).sum(1)
        rho = rho / rho.sum()
        tele = {
            "loss": value, "cost": jnp.sqrt(sum(jnp.sum(g**2) for g in grads)), "entropy": -jnp.sum(rho * jnp.log(rho)),
            "drift": jnp.sum(new[0] * layers[0]), "residual": jnp.max(jnp.abs(grads[1])), "mass": active.sum(),
            "rho": rho,
        }  # fmt: skip
        return (new, number + 1), tele

    return body, (layers, jnp.zeros((), jnp.int64))


Make = Callable[[int], tuple[Body, Any]]  # size -> step, first state
WORKLOADS: dict[str, tuple[Make, int]] = {"transport": (transport, 16), "training": (training, 64)}


def calibrate(workload: str, target: float, scan: int = 1) -> int:
    """The size at which a step of the workload, one of scan in a call, takes about target seconds on this machine."""
    make, size = WORKLOADS[workload]
    for _ in range(4):
        size = max(1, round(size * target / seconds_per_step(make, size, scan)))
    return size


def repeated(body: Body, scan: int) -> Body:
    """So many steps in one program; the telemetry is stacked."""
    import jax

    return body if scan == 1 else lambda carry: jax.lax.scan(lambda c, _: body(c), carry, length=scan)


def seconds_per_step(make: Make, size: int, scan: int, steps: int = 300) -> float:
    """The time of a step that is waited for: of the quicker half the median, which others disturb least."""
    import jax

    body, carry = make(size)
    step = jax.jit(repeated(body, scan))
    carry, _ = step(carry)
    times = []
    for _ in range(max(30, steps // scan)):
        began = time.perf_counter()
        carry, tele = step(carry)
        jax.block_until_ready(tele)
        times.append(time.perf_counter() - began)
    return float(np.quantile(times, 0.25)) / scan


def interval(pairs: int, statistic: Callable[[np.ndarray], float]) -> tuple[float, float, float]:
    """A statistic of pairs of blocks, given their indices, with its 95 % bootstrap interval over pairs."""
    rng = np.random.default_rng(1)
    spread = [statistic(rng.integers(pairs, size=pairs)) for _ in range(RESAMPLES)]
    low, high = np.quantile(spread, (0.025, 0.975))
    return statistic(np.arange(pairs)), float(low), float(high)


def conclude(
    results: dict[str, Any], bars: Iterable[tuple[bool, str]], report: Callable[[dict[str, Any]], str], as_json: bool
) -> int:
    """Prints the results, and to standard error which bars were met. Returns the exit code: 1 if one was missed."""
    results["bars"] = [{"met": met, "bar": text} for met, text in bars]
    print(json.dumps(results, indent=1) if as_json else report(results))
    for bar in results["bars"]:
        print(f"{'met' if bar['met'] else 'MISSED'}: {bar['bar']}", file=sys.stderr)
    return 0 if all(bar["met"] for bar in results["bars"]) else 1


def machine(packages: Iterable[str]) -> dict[str, Any]:
    """What the figures depend on: processor, cores, load, and versions."""
    model = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            about = dict(line.split(":", 1) for line in file if ":" in line)
        about = {key.strip(): value.strip() for key, value in about.items()}
        model = f"{about['model name']} (family {about['cpu family']}, model {about['model']})"
    except (OSError, KeyError):
        pass
    versions = {"python": platform.python_version()}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "cpu": model, "cores": len(os.sched_getaffinity(0)), "system": f"{platform.system()} {platform.release()}",
        "load": os.getloadavg()[0], "date": time.strftime("%Y-%m-%d", time.gmtime()), "versions": versions,
    }  # fmt: skip


def describe(about: dict[str, Any]) -> str:
    """The machine in a sentence for under the table."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    where = f"{about['cores']} cores of {about['cpu']}"
    return f"{about['date']}, {where}, load average at the beginning {about['load']:.1f}; {versions}."


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def micro(ns: float) -> str:
    """Nanoseconds as microseconds of three figures or so."""
    us = ns / 1e3
    return f"{us:.2f}" if us < 10 else f"{us:.1f}" if us < 100 else f"{us:,.0f}"
