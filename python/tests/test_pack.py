"""The words of a record made on the device and on the host: the same, and exact."""

from __future__ import annotations

from typing import Any

import pytest
from devicehelp import F32_BITS, widened

from usp._pack import encode, pack, packed_len
from usp._schema import Field, Schema

jax = pytest.importorskip("jax", reason="no jax here")
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

SCALAR = [Field("loss", "metric", "f32", 1)]


@pytest.mark.parametrize(
    ("dtype", "bits", "exponent", "mantissa"),
    [("float16", 16, 5, 10), ("bfloat16", 16, 8, 7), ("float32", 32, 8, 23)],
)
def test_widening_is_exact_on_device_and_host(dtype: str, bits: int, exponent: int, mantissa: int) -> None:
    whole = np.uint16 if bits == 16 else np.uint32
    rng = np.random.default_rng(1)
    raw = np.arange(1 << 16, dtype=whole) if bits == 16 else np.concatenate([
        np.array(F32_BITS, whole), rng.integers(0, 1 << 32, 40000, whole), rng.integers(0, 1 << 23, 5000, whole),
    ])  # fmt: skip
    want = np.array([widened(int(b), exponent, mantissa) for b in raw], np.uint64)
    schema = Schema("t", [Field("v", "metric", "f64", len(raw))])
    values = raw.view(jnp.dtype(dtype))
    device = np.asarray(jax.jit(lambda r: pack(schema, {"v": jax.lax.bitcast_convert_type(r, dtype)}))(raw)).view(
        np.uint64
    )
    host = np.empty(len(raw), np.uint64)
    encode(host, values, "f64")
    if dtype == "float16":  # numpy may make signalling NaNs of float16 quiet
        host |= np.where(np.isnan(values.astype(np.float64)), np.uint64(1 << 51), np.uint64(0))
        assert (host == want | np.where(np.isnan(values.astype(np.float64)), np.uint64(1 << 51), np.uint64(0))).all()
    else:
        assert (host == want).all()
    assert (device == want).all()


@pytest.mark.parametrize("name", ["int8", "int16", "int32", "uint8", "uint16", "uint32", "bool", "int64", "uint64"])
def test_integers_in_float_and_integer_fields(name: str) -> None:
    with jax.enable_x64(True):
        if name == "bool":
            values, wide = np.array([True, False]), [1, 0]
        else:
            info = np.iinfo(name)
            values = np.array([0, 1, 3, info.max, info.min, info.max // 3, info.min // 7], name)
            wide = [int(v) for v in values]
        kinds = ["f64", "f32"] + (["i64"] if name != "uint64" else []) + (["u64"] if not name.startswith("int") else [])
        for kind in kinds:
            schema = Schema("t", [Field("v", "metric", kind, len(values))])
            packed = np.asarray(jax.jit(lambda v, s=schema: pack(s, {"v": v}))(jnp.asarray(values)))
            host = np.empty(len(values), np.uint64)
            encode(host, values, kind)
            if kind == "f64":
                want = np.array([float(w) for w in wide])
            elif kind == "f32":
                want = np.array(values, np.float32).astype(np.float64)
            else:
                want = np.array(wide, np.int64 if kind == "i64" else np.uint64)
            assert packed.view(np.uint64).tolist() == want.view(np.uint64).tolist() == host.tolist(), (kind, wide)
    if name not in ("int64", "uint64"):  # and where there is no float64
        schema = Schema("t", [Field("v", "metric", "f64", len(values))])
        with jax.enable_x64(False):
            packed = np.asarray(jax.jit(lambda v: pack(schema, {"v": v}))(jnp.asarray(values)))
        assert packed.view(np.float64).tolist() == [float(w) for w in wide]


def test_pack_takes_numbers_and_any_shape() -> None:
    schema = Schema("t", [Field("a", "metric", "f64", 4), Field("b", "flag", "u64", 1), Field("c", "metric", "i64", 1)])
    with jax.enable_x64(True):
        out = pack(schema, {"a": jnp.arange(4.0).reshape(2, 2), "b": 3, "c": -2})
    assert out.dtype == jnp.uint32
    assert out.shape == (packed_len(schema),) == (12,)
    words = np.asarray(out).view(np.uint64)
    assert words[:4].view(np.float64).tolist() == [0, 1, 2, 3]
    assert words[4:].tolist() == [3, 2**64 - 2]


def test_pack_lets_gradients_and_vmap_through() -> None:
    schema = Schema("t", SCALAR)

    def loss(x: Any) -> Any:
        y = (x * x).sum()
        return y, pack(schema, {"loss": y})

    (value, packed), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(jnp.arange(3, dtype=jnp.float32))
    assert grad.tolist() == [0, 2, 4]
    assert np.asarray(packed).view(np.float64).tolist() == [float(value)]
    assert jax.vmap(lambda x: pack(schema, {"loss": x}))(jnp.zeros(5, jnp.float32)).shape == (5, 2)
