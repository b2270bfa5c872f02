"""The numerics of examples/orchestrator.py, with real JAX in float64, against values computed with 34 digits and
published ones: the same that the Go packages ot, internal/aggregate and predictor are tested with."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

jax = pytest.importorskip("jax", reason="the examples need JAX")
import jax.numpy as jnp  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "examples"))
import orchestrator as o  # noqa: E402


@pytest.fixture(autouse=True)
def x64() -> Iterator[None]:
    """float64, here alone."""
    with jax.enable_x64(True):
        yield


def near(got: object, want: object, tol: float = 1e-13) -> None:
    np.testing.assert_allclose(np.asarray(got, float), want, rtol=tol, atol=tol * 1e-3)


def squares(x: list[float]) -> np.ndarray:
    return np.subtract.outer(x, x) ** 2


RHO, LOSS = np.array([0.4, 0.3, 0.2, 0.1]), np.array([1, 0.5, 0.25, 2])
GROUND = squares([0, 0.5, 1, 2])
EVEN = np.full(4, 0.25)


def test_sinkhorn_two_points() -> None:
    half = jnp.array([0.5, 0.5])
    plan, cost, _, off, _ = o.sinkhorn(half, half, jnp.array([[0.0, 1], [1, 0]]), 1.0)
    near(plan, [[0.36552928931500244, 0.13447071068499756], [0.13447071068499756, 0.36552928931500244]])
    near(cost, 0.26894142136999512)
    assert off <= 1e-14


@pytest.mark.parametrize(("eps", "cost", "regularised"), [
    (1, 2.5969980749682076, 3.1243287244413312), (0.5, 2.5137136887605528, 2.8329724085974474),
    (0.1, 2.5000000016489229, 2.5673011666184795)])
def test_sinkhorn_four_points(eps: float, cost: float, regularised: float) -> None:
    a = jnp.array([0.1, 0.2, 0.3, 0.4])
    _, paid, total, off, n = o.sinkhorn(a, a[::-1], jnp.asarray(squares([0, 1, 2, 4])), eps)
    near(paid, cost)
    near(total, regularised)
    assert off <= 1e-14 and n < 10000


def test_sinkhorn_says_when_not_converged() -> None:
    a = jnp.array([0.1, 0.2, 0.3, 0.4])
    _, _, _, off, n = o.sinkhorn(a, a[::-1], jnp.asarray(squares([0, 1, 2, 4])), 0.1, max_iterations=3)
    assert n == 3 and off > 1e-14


@pytest.mark.parametrize(("eps", "tau", "lam", "want"), [
    (0.1, 0.5, 0.0, [0.030238443892776377, 0.51866631757086781, 0.45103996068933724, 5.5277847018565787e-5]),
    (0.1, 0.5, 0.2, [0.15017638871279445, 0.40628720700137686, 0.42358354761578794, 0.019952856670040744]),
    (0.1, 5.0, 0.2, [0.028703494053751499, 0.27584808680343334, 0.69520314791853242, 0.00024527122428274601]),
    (1e4, 0.5, 0.2, [0.25000718509460985, 0.25002718490539878, 0.25002843478670221, 0.24993719521328916]),
    (0.02, 0.05, 0.2, [0.3999758599529562, 0.30001842904198254, 0.20000571100506126, 0.1])])
def test_jko(eps: float, tau: float, lam: float, want: list[float]) -> None:
    loss, prior, cost = jnp.asarray(LOSS), jnp.asarray(EVEN), jnp.asarray(GROUND)
    rho, paid, free, n = jax.jit(lambda rho: o.jko_step(rho, loss, prior, cost, tau, eps, lam))(jnp.asarray(RHO))
    np.testing.assert_allclose(rho, want, rtol=1e-12, atol=1e-16)  # of each weight; of their sum:
    assert np.abs(np.asarray(rho) - want).max() <= 1e-13
    assert 1 <= n < 2000
    if (eps, tau) == (0.1, 0.5):
        near(paid, 0.23210738614676891 if lam == 0 else 0.18020139323483733)
    if (eps, tau, lam) == (0.1, 0.5, 0.2):
        near(free, 0.55785440974502804)


def test_hk() -> None:
    cost = jnp.asarray(GROUND + 0.5 * (1 - np.eye(4)))
    kernel, paid = o.transition(cost, 0.1)
    rho, moved, mix = o.hk_step(jnp.asarray(RHO), jnp.asarray(LOSS), kernel, paid, 0.5)
    near(mix, 0.74346165286509841)
    near(moved, 0.00053320617554994743)
    near(rho, [0.35183930581997176, 0.3387966044695348, 0.25601258545365717, 0.053351504256836274])
    rho, _, mix = o.hk_step(rho, jnp.array([0.0, 1, 1, 1]), kernel, paid, 0.5)
    near(mix, 0.58882631288112877)
    near(rho, [0.4721786475466122, 0.27590932754615408, 0.20847481299835968, 0.043437211908874043])


def test_weights_stay_in_the_simplex() -> None:
    """Losses so far apart that exponentials underflow, and a vector with zeros."""
    kernel, paid = o.transition(jnp.asarray(GROUND + 0.5 * (1 - np.eye(4))), 0.02)
    for rho in ([0.4, 0.3, 0.2, 0.1], [1.0, 0, 0, 0], [0, 0, 0.5, 0.5]):
        new, _, mix = o.hk_step(jnp.array(rho), jnp.array([8.0, -8, 3, 0]), kernel, paid, 400.0)
        assert np.isfinite(mix) and (np.asarray(new) >= 0).all() and abs(float(new.sum()) - 1) < 2**-50
    near(o.normalize(jnp.zeros(4)), EVEN)
    near(o.normalize(jnp.array([jnp.inf, 1, 1, 1])), EVEN)


def test_entropy() -> None:
    near(o.entropy(jnp.asarray(EVEN)), np.log(4))
    assert o.entropy(jnp.array([1.0, 0, 0])) == 0


@pytest.mark.parametrize(("rule", "want"), [
    ("boa", [7 / 3, 2.3441571630380554, 2.2002661764416673, 1.4470800421892703]),
    ("poly", [7 / 3, 2.4, 2.2178586192641587, 1.3481778881949529])])
def test_published_rules(rule: str, want: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    experts = np.array([[1, 2, 4], [2, 2.5, 1], [3, 2, 2], [1, 1.5, 3]])
    third = jnp.full(3, 1 / 3)
    if rule == "boa":
        state, learn = {"variance": jnp.zeros(3), "gains": jnp.zeros(3), "share": third, "belief": third}, o.boa_learn
    else:
        monkeypatch.setattr(o, "POLY_PRIOR", 0.0)  # the published rule assumes nothing
        state, learn = {"regret": jnp.zeros(3), "inverse": jnp.zeros(3), "share": third}, o.poly_learn
    for x, y, f in zip(experts, [1.5, 2.25, 2.5, 1.25], want, strict=True):
        got = jnp.sum(state["share"] * x)
        near(got, f)
        state = learn(state, 2 * (got - y) * (x - got))


def test_soft_reset_is_remembered() -> None:
    """Weights made a tenth more uniform are what the rule itself gives after a round without losses."""
    belief = jnp.array([0.5, 0.3, 0.2])
    boa = {"variance": jnp.zeros(3), "gains": jnp.zeros(3), "share": belief, "belief": belief}
    poly = {"regret": jnp.zeros(3), "inverse": jnp.full(3, o.POLY_PRIOR), "share": belief}
    loss = jnp.array([-1.0, 0.5, -0.25])
    boa, poly = o.boa_learn(boa, loss), o.poly_learn(poly, loss)
    for state, learn, soften in ((boa, o.boa_learn, o.boa_soften), (poly, o.poly_learn, o.poly_soften)):
        softer = soften(state, 0.1)["share"]
        near(softer, 0.9 * np.asarray(state["share"]) + 0.1 / 3)
        near(learn(soften(state, 0.1), jnp.zeros(3))["share"], softer)


def test_cusum_finds_the_nile_dam() -> None:
    """With the first 20 years as the reference, k = 0.5 and h = 5, the fall of 1898 is found in 1902."""
    with open(ROOT / "internal" / "examples" / "nile.csv", newline="") as f:
        flow = np.array([float(row["value"]) for row in csv.DictReader(f)])
    z = (flow - flow[:20].mean()) / flow[:20].std(ddof=1)
    state = {k: jnp.asarray(0.0) for k in ("up", "down", "shown_up", "shown_down", "grace", "own2")}
    state["own2"] += 1

    def step(state: o.State, z: jax.Array) -> tuple[o.State, tuple[jax.Array, jax.Array]]:
        state, alarm = o.cusum(state, z, bound=1e9, normal2=1.0, rate=0.0, slack=0.5, threshold=5.0, wait=20)
        return state, (alarm, state["shown_down"])

    _, (alarms, down) = jax.lax.scan(step, state, jnp.asarray(z))
    first = int(np.argmax(np.asarray(alarms) != 0))
    assert (1871 + first, int(alarms[first])) == (1902, o.ALARM_DOWN)
    near(down[first], 5.656285643007721)
    assert not np.asarray(alarms[first + 1 : first + 21]).any()  # grace
