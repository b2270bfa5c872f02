"""One step of the weights of experts, in JAX: what examples/jax_jko.py runs for many series at once.

The same computation as the Go predictor's orchestrator (packages ot and predictor of this repository), function by
function: Hellinger-Kantorovich learners at three rates, BOA and ML-Poly beside them, ML-Poly over all five; or one
entropic JKO step; a guard that falls back to the naive forecast; CUSUM charts over the errors, the level and the
variance. Left out is what needs a clock or a quarantine: stale, frozen and outlying values, and the emergency.

All functions are pure, take and return arrays of the dtype they are given (float64 for parity), and are written for
one series: jax.vmap makes a batch. N is the number of experts. Costs are (N, N), epsilon has their unit, entropies
are in nats. Counters are floats, so that a state is arrays of one dtype.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.scipy.special import logsumexp

State = dict[str, Any]  # a pytree; its paths are the names in a snapshot

# The bits of the field "flags", those of the Go predictor that can come up here.
WARM_UP, ALARM_UP, ALARM_DOWN, GRACE, ALARM_VARIANCE = 1, 2, 4, 8, 1 << 10

RATES = (0.05, 0.2, 0.0)  # of the Hellinger-Kantorovich learners; 0: the rate that adapts to the losses seen
PARTS = len(RATES) + 2
POLY_PRIOR = 4.0  # squared gains that ML-Poly assumes before any were seen
LOSS_BOUND, COST_BOUND, LEARNER_SHARE = 8.0, 100.0, 0.02
WARM = 10  # scored forecasts before alarms and the guard


class Config(NamedTuple):
    """Settings of the step, with the defaults of the Go predictor. The thresholds are those that it computes for
    mean run lengths of 500, 4000 and 1000 steps between false alarms."""

    step: str = "hk"  # or "jko"
    tau: float = 0.5
    lam: float = 0.05
    switch_cost: float = 0.5
    eps_base: float = 0.07
    eps_volatility: float = 0.5
    eps_min: float = 0.02
    eps_max: float = 0.5
    soft_reset: float = 0.1
    grace: int = 20
    threshold: float = 4.807421889141626
    slow_threshold: float = 3.5878527551171975
    variance_threshold: float = 8.184198525719898
    sinkhorn_iterations: int = 50


# -- optimal transport --------------------------------------------------------------------------------------------


def normalize(p: Array) -> Array:
    """p >= 0 in sum 1; uniform where the sum is zero or not finite."""
    s = jnp.sum(p)
    good = (s > 0) & jnp.isfinite(s)
    return jnp.where(good, p / jnp.where(good, s, 1), 1 / p.shape[-1])


def entropy(p: Array) -> Array:
    """-sum p ln p in nats, with 0 ln 0 = 0."""
    return -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0))


def fisher_rao(rho: Array, loss: Array, eta: Array | float) -> tuple[Array, Array]:
    """w proportional to rho exp(-eta loss), and the mix loss -(1/eta) ln sum rho exp(-eta loss); eta > 0."""
    least = jnp.min(jnp.where(rho > 0, loss, jnp.inf))  # relative to one without weight all could underflow
    w = rho * jnp.exp(jnp.minimum(0, -eta * (loss - least)))
    s = jnp.sum(w)
    return w / s, least - jnp.log(s) / eta


def transition(cost: Array, eps: Array | float) -> tuple[Array, Array]:
    """The kernel softmax(-cost/eps) by rows, and what a unit of mass in each row pays on its way."""
    e = jnp.exp((jnp.min(cost, axis=1, keepdims=True) - cost) * (1 / eps))
    kernel = e * (1 / jnp.sum(e, axis=1, keepdims=True))
    return kernel, jnp.sum(kernel * cost, axis=1)


def hk_step(rho: Array, loss: Array, kernel: Array, paid: Array, eta: Array | float) -> tuple[Array, Array, Array]:
    """Fisher-Rao, then transport by the kernel: the new weights, <C,pi>, the mix loss."""
    w, mix_loss = fisher_rao(rho, loss, eta)
    return normalize(jnp.sum(w[:, None] * kernel, axis=0)), jnp.sum(w * paid), mix_loss


def jko_step(rho: Array, loss: Array, prior: Array, cost: Array, tau: float, eps: Array | float, lam: float,
             tol: float = 1e-14, max_iterations: int = 2000) -> tuple[Array, Array, Array, Array]:
    """The second marginal of the plan from rho that minimises <C,pi> + eps sum pi(ln pi - 1) + 2 tau F, with
    F(q) = <loss,q> + lam KL(q|prior): the new weights, <C,pi>, F, iterations. lam = 0 is in closed form; otherwise
    potentials are scaled until they move by no more than tol of their size, which takes long where tau*lam/eps is
    large."""
    sigma = 2 * tau / eps

    def plan(g: Array) -> Array:
        return rho[:, None] * jax.nn.softmax(g[None, :] - cost / eps, axis=1)

    if lam == 0:
        g, iterations = -sigma * loss, jnp.asarray(1)
    else:
        def scale(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            g, _, n = carry
            f = jnp.log(rho) - logsumexp(g[None, :] - cost / eps, axis=1)
            p = logsumexp(f[:, None] - cost / eps, axis=0)
            new = sigma * (lam * (jnp.log(prior) - p) - loss) / (1 + sigma * lam)
            return new, jnp.max(jnp.abs(new - g)), n + 1

        def moving(carry: tuple[Array, Array, Array]) -> Array:
            g, moved, n = carry
            return (moved > tol * (1 + jnp.max(jnp.abs(g)))) & (n < max_iterations)

        start = (jnp.zeros_like(rho), jnp.asarray(jnp.inf, rho.dtype), jnp.asarray(0))
        g, _, iterations = lax.while_loop(moving, scale, start)
    pi = plan(g)
    q = normalize(jnp.sum(pi, axis=0))
    free = jnp.sum(loss * q)
    if lam != 0:
        free += lam * jnp.sum(jnp.where(q > 0, q * jnp.log(jnp.where(q > 0, q, 1) / prior), 0))
    return q, jnp.sum(pi * cost), free, iterations


def sinkhorn(a: Array, b: Array, cost: Array, eps: Array | float, tol: float = 1e-14,
             max_iterations: int = 10000) -> tuple[Array, Array, Array, Array, Array]:
    """The entropic plan between a and b, in the log domain: plan, <C,pi>, <C,pi> + eps KL(pi|ab), residual of the
    first marginal, iterations."""
    log_a, log_b = jnp.log(a), jnp.log(b)

    def update(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        _, g, _, n = carry
        f = log_a - logsumexp(g[None, :] - cost / eps, axis=1)
        g = log_b - logsumexp(f[:, None] - cost / eps, axis=0)
        off = jnp.max(jnp.abs(jnp.sum(jnp.exp(f[:, None] + g[None, :] - cost / eps), axis=1) - a))
        return f, g, off, n + 1

    start = (jnp.zeros_like(a), jnp.zeros_like(b), jnp.asarray(jnp.inf, a.dtype), jnp.asarray(0))
    f, g, off, n = lax.while_loop(lambda c: (c[2] > tol) & (c[3] < max_iterations), update, start)
    plan = jnp.exp(f[:, None] + g[None, :] - cost / eps)
    some = plan > 0
    kl = jnp.sum(jnp.where(some, plan * (jnp.log(jnp.where(some, plan, 1)) - log_a[:, None] - log_b[None, :]), 0))
    paid = jnp.sum(jnp.where(some, plan * cost, 0))
    return plan, paid, paid + eps * kl, off, n


# -- published rules without transport ----------------------------------------------------------------------------


def uniform_part(p: Array, part: float) -> Array:
    """p with that part of it made uniform."""
    return normalize((1 - part) * p + part / p.shape[-1])


def boa_mix(v: Array, gains: Array, belief: Array) -> Array:
    """Weights of Bernstein online aggregation; the belief while nobody has differed from the mixture."""
    least = jnp.min(jnp.where(v > 0, v, jnp.inf))
    known = jnp.where(v > 0, v, jnp.where(jnp.isinf(least), 1, least))
    e = gains / jnp.sqrt(known) - 0.5 * jnp.log(known)
    w = belief * jnp.exp(e - jnp.max(e))
    return jnp.where(jnp.isinf(least), belief, w / jnp.sum(w))


def boa_learn(s: State, loss: Array) -> State:
    """BOA after a round of losses relative to its mixture."""
    r2 = loss * loss
    v = s["variance"] + 2.2 * r2
    gains = s["gains"] + jnp.where(v > 0, -loss - r2 / jnp.sqrt(jnp.where(v > 0, v, 1)), 0)
    return {**s, "variance": v, "gains": gains, "share": boa_mix(v, gains, s["belief"])}


def boa_soften(s: State, part: float) -> State:
    """BOA with that part of the weights uniform, as if it had come to them by itself."""
    w = s["share"]
    least = max(2.0**-1000, float(jnp.finfo(w.dtype).tiny))
    softer = (1 - part) * w + part / w.shape[-1]
    gains = s["gains"] + jnp.sqrt(s["variance"]) * jnp.log(softer / jnp.maximum(w, least))
    return {**s, "gains": gains, "share": boa_mix(s["variance"], gains, s["belief"])}


def poly_ahead(regret: Array, inverse: Array) -> Array:
    """Regret per learning rate of those ahead of the mixture, else 0."""
    return jnp.where((regret > 2.5e-10 * POLY_PRIOR) & (inverse > 0), regret / inverse, 0)


def poly_mix(regret: Array, inverse: Array) -> Array:
    """Weights of ML-Poly; uniform if nobody is ahead of the mixture."""
    w = poly_ahead(regret, inverse)
    s = jnp.sum(w)
    return jnp.where(s > 0, w / jnp.where(s > 0, s, 1), 1 / regret.shape[-1])


def poly_learn(s: State, loss: Array) -> State:
    """ML-Poly after a round of losses relative to its mixture."""
    regret, inverse = s["regret"] - loss, s["inverse"] + loss * loss
    return {"regret": regret, "inverse": inverse, "share": poly_mix(regret, inverse)}


def poly_soften(s: State, part: float) -> State:
    """ML-Poly with that part of the weights uniform, as if it had come to them by itself."""
    regret, inverse = s["regret"], s["inverse"]
    mean = jnp.sum(poly_ahead(regret, inverse) / regret.shape[-1])
    regret = (1 - part) * jnp.maximum(0, regret) + part * mean * inverse
    return {"regret": regret, "inverse": inverse, "share": poly_mix(regret, inverse)}


# -- charts -------------------------------------------------------------------------------------------------------


def choose(condition: Array, yes: Any, no: Any) -> Any:
    """yes where the condition holds, else no, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def cusum(g: State, z: Array, *, bound: float, normal2: float, rate: float, slack: float, threshold: float,
          wait: int) -> tuple[State, Array]:
    """Page's two-sided chart on clipped scores in units of their spread: the state and the alarm, a flag or 0.
    After an alarm the sums are zero and no other is raised for so many steps; so are they when these are over."""
    z = jnp.clip(z, -bound, bound)
    psi = z / jnp.sqrt(g["own2"] + 0.12 * (normal2 - g["own2"]))
    own2 = g["own2"] + rate * (z * z - g["own2"])
    up = jnp.maximum(0, g["up"] + (psi - slack))
    down = jnp.maximum(0, g["down"] - (psi + slack))
    waiting = g["grace"] > 0
    left = jnp.where(waiting, g["grace"] - 1, 0)
    alarm = jnp.where(waiting, 0, jnp.where(up > threshold, ALARM_UP, jnp.where(down > threshold, ALARM_DOWN, 0)))
    clear = (waiting & (left == 0)) | (alarm != 0)
    new = {"up": jnp.where(clear, 0, up), "down": jnp.where(clear, 0, down), "shown_up": up, "shown_down": down,
           "own2": own2, "grace": jnp.where(alarm != 0, jnp.asarray(wait, z.dtype), left)}
    return new, alarm


SLOW_LEAST, SLOW_MOST, SLOW_LAG = 20, 1000, 4
DEVIATION_1, DEVIATION_3 = 0.8823067585451615, 0.9975005153053574  # of a normal variable clipped to 1.5 and to 3


def slow_learn(s: State, y: Array, floor: Array) -> State:
    """Takes a value into the level, and the spread and autocorrelation about it."""
    size = jnp.minimum(s["n"], SLOW_MOST)
    some = size > 0
    r = jnp.sqrt(size / (size + 1)) * (y - s["level"])
    bound = 3.0 * jnp.sqrt(s["s2"])
    r = jnp.where((s["n"] >= 5) & (s["s2"] > floor * floor), jnp.clip(r, -bound, bound), r)
    per = jnp.where(some, size, 1)
    n = s["n"] + 1
    return {**s, "product": jnp.where(some, s["product"] + (r * s["previous"] - s["product"]) / per, s["product"]),
            "s2": jnp.where(some, s["s2"] + (r * r - s["s2"]) / per, s["s2"]),
            "previous": jnp.where(some, r, s["previous"]), "n": n,
            "level": s["level"] + (y - s["level"]) / jnp.minimum(n, SLOW_MOST)}


def slow_restart(s: State) -> State:
    """Forgets the level, after a change."""
    return {**jax.tree.map(jnp.zeros_like, s), "chart": {**jax.tree.map(jnp.zeros_like, s["chart"]),
                                                        "own2": s["chart"]["own2"]}}


def slow_chart(s: State, y: Array, floor: Array, quiet: Array, threshold: float) -> tuple[State, Array]:
    """Watches the level that experts follow: a value against the mean of those since the last change but for the
    newest, unless they are so related that they have no level. Silent while quiet."""
    g = s["chart"]
    size = jnp.maximum(1, jnp.minimum(s["n"], SLOW_MOST))
    spread = s["s2"] * (1 + 1 / size)
    related = jnp.where(spread > 0, s["product"] / jnp.where(spread > 0, spread, 1), jnp.inf)
    kept = jnp.clip(related, 0, 0.7)
    unit = jnp.maximum(floor, jnp.sqrt(spread * ((1 + kept) / (1 - kept))))
    charted, alarm = cusum(g, (y - s["level"]) / unit, bound=3.0, normal2=DEVIATION_3**2, rate=0.0, slack=1.0,
                           threshold=threshold, wait=1)
    judged = ~quiet & (s["n"] >= SLOW_LEAST) & (related < 0.7)
    silent = {**g, "up": jnp.zeros_like(g["up"]), "down": jnp.zeros_like(g["down"])}
    s = {**s, "chart": choose(quiet, silent, choose(judged, charted, g))}
    place = jnp.mod(s["held"], SLOW_LAG).astype(jnp.int32)
    s = choose(s["held"] >= SLOW_LAG, slow_learn(s, s["recent"][place], floor), s)
    s = {**s, "recent": s["recent"].at[place].set(y), "held": s["held"] + 1}
    return s, jnp.where(judged, alarm, 0)


def winsorise(d2: Array, mean: Array, floor: Array, n: Array) -> Array:
    """A squared error counts at most nine times the mean of the n before it, unless they are few."""
    return jnp.where((n < 5) | (mean <= floor * floor), d2, jnp.minimum(d2, 9 * mean))


def variance_chart(v: State, err: Array, recent: Array, floor: Array, threshold: float,
                   wait: int) -> tuple[State, Array]:
    """Page's one-sided chart on the bounded squares of errors, in units of a mean square with a long memory."""
    unit2 = jnp.maximum(v["reference"], floor * floor)
    e2 = winsorise(err * err, v["reference"], floor, v["n"])
    n = v["n"] + 1
    reference = v["reference"] + jnp.maximum(1 - 0.995, 1 / n) * (e2 - v["reference"])
    z = jnp.clip(err / jnp.sqrt(unit2), -3, 3)
    total = jnp.maximum(0, v["sum"] + ((z * z - 0.9950072780344535) / 1.3789312977567905 - 0.5))
    waiting = v["grace"] > 0
    left = jnp.where(waiting, v["grace"] - 1, 0)
    judged = v["n"] >= 20
    alarm = judged & ~waiting & (total > threshold)
    new = {"sum": jnp.where(alarm | (waiting & (left == 0)), 0, total), "shown": total,
           "grace": jnp.where(alarm, jnp.asarray(wait, err.dtype), left)}
    new = choose(judged, new, {k: v[k] for k in new})
    return {**new, "reference": jnp.where(alarm, jnp.maximum(reference, recent), reference),
            "n": jnp.where(alarm, 33, n)}, jnp.where(alarm, ALARM_VARIANCE, 0)


# -- the step -----------------------------------------------------------------------------------------------------


def new_state(belief: Array, cfg: Config) -> State:
    """The state of one series before its first value; belief (N,) are the weights before any evidence."""
    zero, n = jnp.zeros((), belief.dtype), belief.shape[0]
    chart = {k: zero for k in ("up", "down", "shown_up", "shown_down", "grace")}
    poly = {"regret": jnp.zeros(n), "inverse": jnp.full(n, POLY_PRIOR), "share": jnp.full(n, 1 / n)}
    outer = {"regret": jnp.zeros(PARTS), "inverse": jnp.full(PARTS, POLY_PRIOR), "share": jnp.full(PARTS, 1 / PARTS)}
    parts: State = {
        "hk": jnp.stack([belief] * len(RATES)), "hk_variance": jnp.ones(len(RATES)),
        "boa": {"variance": jnp.zeros(n), "gains": jnp.zeros(n), "share": belief, "belief": belief},
        "poly": poly, "outer": outer,
    }
    if cfg.step == "jko":
        parts = {"jko": belief, "loss": jnp.zeros(n), "belief": belief, "seen": zero}
    state = {
        "parts": parts, "rho": belief, "weights": belief, "forecasts": jnp.zeros(n), "distance": jnp.zeros((n, n)),
        "mixture": zero, "forecast": zero, "previous": zero, "peak": zero, "steps": zero, "scored": zero,
        "scale2": zero, "fast2": zero, "slow2": zero, "epsilon": epsilon_of(cfg, zero, zero),
        "guard": {"gain": zero, "sq": zero, "count": zero}, "cusum": {**chart, "own2": zero + DEVIATION_1**2},
        "slow": {"chart": {**chart, "own2": zero + DEVIATION_3**2}, "recent": jnp.zeros(SLOW_LAG),
                 **{k: zero for k in ("n", "level", "s2", "product", "previous", "held")}},
        "variance": {k: zero for k in ("sum", "shown", "reference", "n", "grace")},
    }
    return jax.tree.map(lambda x: jnp.asarray(x, belief.dtype), state)


def epsilon_of(cfg: Config, fast2: Array, slow2: Array) -> Array:
    """The more volatile the errors are, the more freely weight moves."""
    known = slow2 > 0
    relative = jnp.where(known, jnp.clip(jnp.sqrt(fast2 / jnp.where(known, slow2, 1)), 0.1, 10), 1)
    return jnp.clip(cfg.eps_base * (1 + cfg.eps_volatility * relative), cfg.eps_min, cfg.eps_max)


def tangent(slope: Array, centre: Array, x: Array, inverse: Array) -> Array:
    """The loss of a forecast x: the slope of the squared error at centre times x - centre, in squared scales."""
    return jnp.clip(slope * ((x - centre) * inverse), -LOSS_BOUND, LOSS_BOUND)


def learn_hk(p: State, x: Array, rho: Array, y: Array, scale: Array, cost: Array,
             eps: Array) -> tuple[State, Array, Array]:
    """All five parts and what mixes them, after the value y: their state, the mixture's weights, its <C,pi>."""
    inverse, n = 1 / scale, x.shape[0]
    kernel, paid = transition(cost, eps)
    mixed = jnp.sum(rho * x)

    def losses(weights: Array) -> tuple[Array, Array]:
        own = jnp.sum(weights * x)
        slope = 2 * ((own - y) / scale)
        return tangent(slope, own, x, inverse), own

    def learner(w: Array, variance: Array, rate: Array) -> tuple[Array, Array, Array, Array]:
        loss, own = losses(w)
        adaptive = jnp.minimum(1, jnp.sqrt(jnp.log(jnp.asarray(n, x.dtype)) / variance))
        new, paid_on_way, _ = hk_step(w, loss, kernel, paid, jnp.where(rate == 0, adaptive, rate))
        return new, variance + jnp.sum(w * loss * loss), own, paid_on_way

    hk, variance, own_hk, moved = jax.vmap(learner)(p["hk"], p["hk_variance"], jnp.asarray(RATES, x.dtype))
    loss_boa, own_boa = losses(p["boa"]["share"])
    loss_poly, own_poly = losses(p["poly"]["share"])
    boa, poly = boa_learn(p["boa"], loss_boa), poly_learn(p["poly"], loss_poly)
    own = jnp.concatenate([own_hk, jnp.stack([own_boa, own_poly])])
    outer = poly_learn(p["outer"], tangent(2 * ((mixed - y) / scale), mixed, own, inverse))
    share = (1 - LEARNER_SHARE) * outer["share"] + LEARNER_SHARE / PARTS
    every = jnp.concatenate([hk, boa["share"][None], poly["share"][None]])
    new = {"hk": hk, "hk_variance": variance, "boa": boa, "poly": poly, "outer": outer}
    return new, normalize(jnp.sum(share[:, None] * every, axis=0)), jnp.sum(share[: len(RATES)] * moved)


def learn_jko(p: State, x: Array, rho: Array, y: Array, scale: Array, cost: Array, eps: Array,
              cfg: Config) -> tuple[State, Array, Array]:
    """The JKO step on the smoothed losses: state, weights, <C,pi>."""
    own = jnp.sum(rho * x)
    loss = tangent(2 * ((own - y) / scale), own, x, 1 / scale)
    seen = p["seen"] + 1
    smooth = p["loss"] + jnp.maximum(1 - 0.9, 1 / seen) * (loss - p["loss"])
    new, paid, _, _ = jko_step(p["jko"], smooth, p["belief"], cost, cfg.tau, eps, cfg.lam)
    return {**p, "jko": new, "loss": smooth, "seen": seen}, new, paid


def soften(p: State, part: float) -> State:
    """Every part with that part of its weights uniform."""
    if "jko" in p:
        return {**p, "jko": uniform_part(p["jko"], part)}
    return {**p, "hk": jax.vmap(lambda w: uniform_part(w, part))(p["hk"]), "boa": boa_soften(p["boa"], part),
            "poly": poly_soften(p["poly"], part)}


def guard_share(g: State) -> Array:
    """How much of the mixture stands against the naive forecast, by what both have earned."""
    some = g["sq"] > 0
    credit = 60 * (g["sq"] / jnp.maximum(1, g["count"]))
    return jnp.where(some, jnp.clip(2 * (g["gain"] + credit) / jnp.where(some, g["sq"] + credit, 1), 0, 1), 1)


def blend(weights: Array, x: Array) -> Array:
    """The weighted mean of x, exactly that of all where they are equal."""
    return x[0] + jnp.sum(weights * (x - x[0]))


def orchestrate(cfg: Config, s: State, y: Array, forecasts: Array) -> tuple[State, dict[str, Array]]:
    """Scores the forecast stored for y, watches the errors, moves the weights, and stores the mixture of the experts'
    forecasts (N,) of the next value, the first of which is the naive one. Returns the state and what the step has to
    tell: scalars, and the weights "rho" (N,)."""
    floor = s["peak"] * 1e-12 + 1e-150
    judged, learns, warm = s["steps"] > 0, s["scored"] > 0, s["scored"] >= WARM
    scale = jnp.maximum(jnp.sqrt(s["scale2"]), floor)
    err = jnp.where(judged, y - s["forecast"], 0)
    score = jnp.where(judged, jnp.clip(err / scale, -1e6, 1e6), 0)

    charted, alarm = cusum(s["cusum"], score, bound=1.5, normal2=DEVIATION_1**2, rate=0.002, slack=0.5,
                           threshold=cfg.threshold, wait=cfg.grace)
    chart, alarm = choose(warm, charted, s["cusum"]), jnp.where(warm, alarm, 0)
    slow, level = slow_chart(choose(alarm != 0, slow_restart(s["slow"]), s["slow"]), y, floor,
                             ~warm | (chart["grace"] > 0), cfg.slow_threshold)
    slow = choose(level != 0, slow_restart(slow), slow)

    eps = jnp.where(learns, epsilon_of(cfg, s["fast2"], s["slow2"]), s["epsilon"])
    n = forecasts.shape[0]
    elsewhere = 1 - jnp.eye(n, dtype=y.dtype)
    cost = (jnp.minimum(s["distance"] / (scale * scale), COST_BOUND) + cfg.switch_cost) * elsewhere
    if cfg.step == "jko":
        parts, rho, paid = learn_jko(s["parts"], s["forecasts"], s["rho"], y, scale, cost, eps, cfg)
    else:
        parts, rho, paid = learn_hk(s["parts"], s["forecasts"], s["rho"], y, scale, cost, eps)
    parts, rho = choose(learns, parts, s["parts"]), jnp.where(learns, rho, s["rho"])
    if cfg.sinkhorn_iterations:  # what transport alone, from the weights before to those after, would cost
        _, optimal, _, _, _ = sinkhorn(s["rho"], rho, cost, eps, 1e-9, cfg.sinkhorn_iterations)
    else:
        optimal = jnp.zeros_like(paid)
    parts = choose(alarm != 0, soften(parts, cfg.soft_reset), parts)
    rho = jnp.where(alarm != 0, uniform_part(rho, cfg.soft_reset), rho)

    a, b = s["mixture"] - s["previous"], y - s["previous"]
    g = s["guard"]
    guard = choose(learns, {"gain": g["gain"] * 0.998 + a * b, "sq": g["sq"] * 0.998 + a * a,
                            "count": g["count"] * 0.998 + 1}, g)
    scored = s["scored"] + judged
    e2 = winsorise(err * err, s["scale2"], floor, s["scored"])
    per = jnp.where(judged, 1 / jnp.maximum(1, scored), 0)
    means = {k: s[k] + jnp.where(judged, jnp.maximum(1 - memory, per) * (e2 - s[k]), 0)
             for k, memory in (("scale2", 0.97), ("fast2", 0.90), ("slow2", 0.995))}
    warm = scored >= WARM
    varied, louder = variance_chart(s["variance"], err, means["scale2"], floor, cfg.variance_threshold, cfg.grace)
    variance, louder = choose(warm, varied, s["variance"]), jnp.where(warm, louder, 0)

    # The next value: distances of the forecasts, their mixture, and how far it is trusted.
    apart = forecasts[:, None] - forecasts[None, :]
    distance = s["distance"] + jnp.maximum(1 - 0.97, 1 / (scored + 1)) * (apart * apart - s["distance"])
    mixture = blend(rho, forecasts)
    stands = jnp.where(warm, guard_share(guard), 1) if cfg.step == "hk" else jnp.ones_like(mixture)
    naive = jnp.zeros_like(rho).at[0].set(1 - stands)
    weights = jnp.where(stands < 1, normalize(stands * rho + naive), rho)
    new = {"parts": parts, "rho": rho, "weights": weights, "forecasts": forecasts, "distance": distance,
           "mixture": mixture, "forecast": jnp.where(stands < 1, blend(weights, forecasts), mixture), "previous": y,
           "peak": jnp.maximum(s["peak"], jnp.abs(y)), "steps": s["steps"] + 1, "scored": scored, **means,
           "epsilon": eps, "guard": guard, "cusum": chart, "slow": slow, "variance": variance}
    flags = alarm | level | louder | jnp.where(warm, 0, WARM_UP) | jnp.where(chart["grace"] > 0, GRACE, 0)
    tell = {"cusum_pos": chart["shown_up"], "cusum_neg": chart["shown_down"], "cusum_var": variance["shown"],
            "entropy": entropy(weights), "mixture_share": stands, "loss": score * score, "epsilon": eps,
            "sinkhorn": jnp.where(learns, optimal, 0), "ot_cost": jnp.where(learns, paid, 0), "flags": flags,
            "rho": weights}
    return new, tell
