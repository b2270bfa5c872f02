"""States that the tests of snapshots save, and how they are compared."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from usp import _pytree as pt
from usp._schema import Field

FIELDS = (Field("loss", "metric", "f64", 1),)


def arrays(n: float, megabytes: int = 3) -> dict[str, Any]:
    """A state that is not copied in the call, whose every element is n."""
    return {"a": jnp.full((megabytes, 1 << 18), n, jnp.float32), "b": jnp.full(7, n, jnp.bfloat16), "n": int(n)}


def consistent(state: Any, n: float) -> bool:
    """Whether every element is n."""
    return all(bool((np.asarray(leaf, "f8") == n).all()) for leaf in jax.tree.leaves(state))


donate = jax.jit(lambda s: jax.tree.map(lambda a: a + 1, s), donate_argnums=0)


@jax.jit
def slowly(state: Any, work: Any) -> Any:
    """The state, when work has been done."""
    for _ in range(6):
        work = work @ work * 1e-3
    return jax.tree.map(lambda a: a + (0 * work[0, 0]).astype(a.dtype), state)


def pending(state: Any) -> Any:
    """A state that is not computed yet."""
    jax.block_until_ready(slowly(state, jnp.ones((900, 900))))
    later = slowly(state, jnp.ones((900, 900)))
    return later


def equal(a: Any, b: Any) -> bool:
    """Alike to the bit."""
    fa, sa = jax.tree.flatten(a, is_leaf=lambda x: x is None)
    fb, sb = jax.tree.flatten(b, is_leaf=lambda x: x is None)
    return sa == sb and all(map(leaf_equal, fa, fb))


def leaf_equal(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if pt.kind(a) == "key":
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    if hasattr(a, "dtype"):
        weak = getattr(a, "weak_type", None) == getattr(b, "weak_type", None)
        return weak and a.dtype == b.dtype and a.shape == b.shape and np.asarray(a).tobytes() == np.asarray(b).tobytes()
    return bool(a == b)
