"""The words of a record's values, made on the device (`pack`) or on the host (`encode`): the same bits either way.

Every element becomes one little-endian 8-byte word. Floats narrower than 64 bits are widened exactly and integers are
extended, by integer arithmetic only: no floating-point unit sees the value, so NaN payloads, the sign of zero and
subnormals survive flush-to-zero modes and devices without float64.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from usp._encode import _FORMATS, _SLOW, _converter, _Elsewhere
from usp._errors import FieldError, StepError
from usp._schema import HEAD_WORDS, Field, Schema, check_names

if TYPE_CHECKING:
    import jax
    import numpy as np

_FLOATS = frozenset({"float32", "float16", "bfloat16"})
_UNSIGNED = frozenset({"bool", "uint8", "uint16", "uint32"})
_SIGNED = frozenset({"int8", "int16", "int32"})
_ACCEPTED = {
    "f64": _FLOATS | _UNSIGNED | _SIGNED | {"float64", "int64", "uint64"},
    "f32": _FLOATS | _UNSIGNED | _SIGNED | {"int64", "uint64"},
    "i64": _UNSIGNED | _SIGNED | {"int64"},
    "u64": _UNSIGNED | {"uint64"},  # a negative number could only be found by looking, and nothing here looks
}
_EXPONENT_BITS = {"float32": 8, "float16": 5, "bfloat16": 8}


def packed_len(schema: Schema) -> int:
    """Number of uint32 words of what `pack` returns: two for each element."""
    return 2 * (schema.words - HEAD_WORDS)


def accepts(typ: str, dtype_name: str) -> bool:
    """Whether a field of this type takes arrays of the dtype; integers in float fields are rounded if they must be."""
    return dtype_name in _ACCEPTED[typ] or (typ in ("f64", "f32") and dtype_name.startswith("float8"))


def check_leaf(field: Field, shape: tuple[int, ...], dtype: Any, many: int | None = None) -> None:
    """Raises FieldError unless an array of this shape and dtype holds the field, of `many` records if given."""
    name = dtype.name
    if not accepts(field.type or "", name):
        hint = "cast it, or declare the field with usp.field(..., dtype=...)"
        raise FieldError(f"field {field.name!r}: dtype {name} in a field of {field.type}: {hint}")
    if many is not None:
        if not shape or shape[0] != many:
            raise FieldError(f"field {field.name!r}: shape {shape}: want a leading axis of {many} records")
        shape = shape[1:]
    if math.prod(shape) != field.len:
        raise FieldError(f"field {field.name!r}: shape {shape}, {math.prod(shape)} elements: want {field.len}")


def pack(schema: Schema, values: Mapping[str, Any]) -> jax.Array:
    """Packs the values of one record, inside or outside jit, into one array: uint32, shape (2 * elements,).

    values: exactly the schema's fields, each with as many elements as the field has, in row-major order, of a dtype
    that the field holds without rounding. Differentiation and vmap go through: vmap gives (n, 2 * elements), as do
    scan's stacked outputs. Raises FieldError for values that do not fit the schema.
    """
    import jax.numpy as jnp

    check_names(schema.fields, values)
    parts = []
    for f in schema.fields:
        value = values[f.name]
        x = _number(f, value) if type(value) in (bool, int, float) else jnp.asarray(value)
        check_leaf(f, x.shape, x.dtype)
        parts.append(_words(x.reshape(-1), f.type in ("f64", "f32"), f.type == "f32").reshape(-1))
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


def _number(f: Field, value: float) -> jax.Array:
    """A Python number as jax takes it (a float is float32 unless x64 is enabled), of a dtype that its field holds."""
    import jax.numpy as jnp

    try:
        if f.type in ("f64", "f32"):
            return jnp.asarray(value, jnp.float32 if f.type == "f32" else jnp.result_type(float))
        if isinstance(value, float):
            raise FieldError(f"field {f.name!r}: a float in a field of {f.type}")
        return jnp.asarray(value, jnp.result_type(int) if f.type == "i64" else jnp.uint32)
    except OverflowError:
        raise FieldError(f"field {f.name!r}: {value} is outside the integers of jax; enable x64") from None


def _words(x: jax.Array, real: bool, narrow: bool) -> jax.Array:
    """(n,) of any accepted dtype -> (n, 2) uint32, low word first: a float64 if real, rounded to float32 if narrow."""
    import jax
    import jax.numpy as jnp

    u32 = jnp.uint32
    integer = x.dtype.kind in "iub"
    if integer and narrow:
        x, integer = x.astype(jnp.float32), False
    elif integer and real and x.dtype.itemsize == 8:
        x, integer = x.astype(jnp.float64), False
    name = x.dtype.name
    if name in ("float64", "int64", "uint64"):
        return jax.lax.bitcast_convert_type(x, u32)
    if not integer:
        if name.startswith("float8"):
            x, name = x.astype(jnp.float32), "float32"
        width = 32 if name == "float32" else 16
        bits = jax.lax.bitcast_convert_type(x, u32 if width == 32 else jnp.uint16).astype(u32)
        return _widen(bits, _EXPONENT_BITS[name], width - 1 - _EXPONENT_BITS[name])
    low = jax.lax.bitcast_convert_type(x.astype(jnp.int32), u32) if x.dtype.kind == "i" else x.astype(u32)
    high = jnp.where(x < 0, u32(0xFFFFFFFF), u32(0)) if x.dtype.kind == "i" else jnp.zeros_like(low)
    return _integer_as_float(low, high) if real else jnp.stack([low, high], axis=-1)


def _integer_as_float(low: jax.Array, high: jax.Array) -> jax.Array:
    """A 32-bit integer, sign extended in two words (n,) -> bits of the equal float64 (n, 2)."""
    import jax
    import jax.numpy as jnp

    u32 = jnp.uint32
    size = jnp.where(high == 0, low, u32(0) - low)
    zeros = jax.lax.clz(size)
    fraction = (size << jnp.minimum(zeros, u32(31))) & u32(0x7FFFFFFF)  # the leading one, at bit 31, is implicit
    exponent = jnp.where(size == 0, u32(0), u32(1023 + 31) - zeros)
    return jnp.stack([fraction << 21, (high & u32(1 << 31)) | (exponent << 20) | (fraction >> 11)], axis=-1)


def _widen(bits: jax.Array, exponent_bits: int, mantissa_bits: int) -> jax.Array:
    """Bits of a narrow float in uint32 (n,) -> bits of the equal float64 (n, 2), low word first."""
    import jax
    import jax.numpy as jnp

    u32 = jnp.uint32
    top = (1 << exponent_bits) - 1  # the exponent of infinities and NaNs
    sign = (bits >> (exponent_bits + mantissa_bits)) << 31
    exponent = (bits >> mantissa_bits) & u32(top)
    mantissa = bits & u32((1 << mantissa_bits) - 1)
    # A subnormal's leading one becomes the implicit one; its exponent goes down by as many places.
    places = jax.lax.clz(mantissa) - u32(31 - mantissa_bits)
    subnormal = (exponent == 0) & (mantissa != 0)
    rebias = 1023 - (top >> 1)
    wide = jnp.where(exponent == top, u32(2047), exponent + u32(rebias))
    wide = jnp.where(exponent == 0, u32(0), wide)
    wide = jnp.where(subnormal, u32(rebias + 1) - places, wide)
    shifted = (mantissa << jnp.minimum(places, u32(31))) & u32((1 << mantissa_bits) - 1)
    mantissa = jnp.where(subnormal, shifted, mantissa)
    if mantissa_bits > 20:
        high, low = mantissa >> (mantissa_bits - 20), mantissa << (52 - mantissa_bits)
    else:
        high, low = mantissa << (20 - mantissa_bits), jnp.zeros_like(mantissa)
    return jnp.stack([low, sign | (wide << 20) | high], axis=-1)


def encode(out: np.ndarray, values: np.ndarray, typ: str) -> None:
    """Writes values, of a dtype that a field of type typ takes and as many elements as out, into out: uint64 words."""
    import numpy as np

    values = values.reshape(out.shape)
    name, kind = values.dtype.name, values.dtype.kind
    if typ in ("i64", "u64"):
        out.view(np.int64 if kind == "i" else np.uint64)[...] = values
        return
    if name == "float64" or (kind in "iub" and typ == "f64"):
        out.view(np.float64)[...] = values
        return
    with np.errstate(all="ignore"):  # the processor flags signalling NaNs, and makes them quiet
        if name == "bfloat16":
            values = (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        elif name != "float32":
            values = values.astype(np.float32)
        out.view(np.float64)[...] = values
    nan = np.isnan(values)
    if nan.any():
        bits = values.view(np.uint32)[nan].astype(np.uint64)
        out[nan] = (bits >> 31) << 63 | np.uint64(2047 << 52) | (bits & 0x7FFFFF) << 29


def fill(block: np.ndarray, schema: Schema, leaves: list[np.ndarray], given: list[Any], packed: bool) -> None:
    """Writes values of records into block, a row for each. leaves: packed, or one for each field, read from given.

    What was given as an array of the host is words already.
    """
    import numpy as np

    if packed:
        block.view("u4")[:, 2 * HEAD_WORDS :] = leaves[0]
        return
    for field, offset, leaf, original in zip(schema.fields, schema.offsets, leaves, given, strict=True):
        out = block[:, offset : offset + (field.len or 0)]
        if type(original) is np.ndarray:
            out[...] = leaf
        else:
            encode(out, leaf, field.type or "")


def host_words(field: Field, value: Any) -> np.ndarray:
    """The words of a host value, (field.len,) uint64: a copy. Raises FieldError if it does not fit, as emit does."""
    import numpy as np

    convert = _converter(field, type(value))
    if convert is _SLOW:
        kind = type(value).__name__
        raise FieldError(
            f"field {field.name!r}: a value of type {kind}: want a number, an array, or a flat list of numbers"
        )
    try:
        words = value if convert is None else convert(value)
        if not isinstance(words, bytes):
            words = struct.pack("<" + _FORMATS[str(field.type)], words)
    except _Elsewhere:
        raise FieldError(f"field {field.name!r}: a list of device arrays: make it one array with jnp.stack") from None
    except (struct.error, TypeError, ValueError, OverflowError) as e:
        if isinstance(e, FieldError):
            raise
        raise FieldError(f"field {field.name!r}: {value!r:.80} does not fit {field.type}") from e
    return np.frombuffer(words, np.uint64)


def increasing(steps: np.ndarray) -> bool:
    return bool((steps[1:] > steps[:-1]).all())


def host_steps(steps: Any) -> np.ndarray:
    """Steps of a stacked entry: uint64, increasing."""
    import numpy as np

    given = np.asarray(steps)
    if given.ndim != 1 or (given.dtype.kind not in "iu" and len(given)):
        raise StepError(f"steps: {given.dtype} of shape {given.shape}: want integers of shape (n,)")
    if len(given) and (not increasing(given) or given[0] < 0):
        raise StepError("steps: want numbers from 0 that increase")
    return given.astype(np.uint64)


def host_stack(field: Field, value: Any, many: int) -> np.ndarray:
    """Words of a host value with a leading axis of n records: (n, field.len)."""
    shape = getattr(value, "shape", None)
    if shape is not None and (not shape or shape[0] != many):
        raise FieldError(f"field {field.name!r}: shape {shape}: want a leading axis of {many} records")
    return host_words(Field(field.name, field.cls, field.type, many * (field.len or 0)), value).reshape(many, -1)
