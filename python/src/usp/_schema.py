"""What a record holds: named fields, each a metric, a flag or a digest, and the text that says so to the recorder.

The text of a schema is, to the byte, what the Go package `record` makes of the same fields, and the limits are the
same. Nothing here imports numpy or jax: shapes and dtypes are read from the attributes of values, never their data.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from usp._errors import FieldError

MAX_FIELDS = 1024  # in a schema
MAX_ELEMENTS = 1 << 16  # in a record, all fields together
MAX_DIGESTS = 32  # digest fields in a schema
MAX_NAME = 63  # bytes of a field, schema or unit name
HEAD_WORDS = 2  # step and time precede the fields

CLASSES = ("metric", "flag", "digest")
TYPES = ("f64", "f32", "i64", "u64")

# What travels as which type. Narrower floats are widened exactly, narrower integers too.
_DTYPES = {
    "float64": "f64", "float32": "f32", "float16": "f32", "bfloat16": "f32",
    "int64": "i64", "int32": "i64", "int16": "i64", "int8": "i64",
    "uint64": "u64", "uint32": "u64", "uint16": "u64", "uint8": "u64", "bool": "u64",
}  # fmt: skip

_LOWER = frozenset("abcdefghijklmnopqrstuvwxyz")
_DIGITS = frozenset("0123456789")


@dataclass(frozen=True)
class Field:
    """One named value, or vector of values, of a record.

    name: [a-z][a-z0-9_]*, at most 63 bytes. cls: "metric" and "flag" are stored, "digest" is hashed and then dropped.
    type: of an element, "f64", "f32", "i64" or "u64"; None means not known yet. len: number of elements; None means
    not known yet. unit: printable ASCII without spaces, "" for none.
    """

    name: str
    cls: str
    type: str | None = "f64"
    len: int | None = None
    unit: str = ""


@dataclass(frozen=True)
class Spec:
    """What `field` returns: a field without its name."""

    cls: str
    type: str | None
    len: int | None
    unit: str


def field(cls: str, shape: int | Sequence[int] | None = None, dtype: Any = None, unit: str = "") -> Spec:
    """Declares a field for `fields`.

    shape: its shape, () or 1 for a scalar, None to take that of its first value; elements travel in row-major order.
    dtype: anything with the name of a numpy dtype, or "f64", "f32", "i64", "u64"; None takes that of its first value.
    Raises FieldError for a class, shape or dtype that cannot be.
    """
    if cls not in CLASSES:
        raise FieldError(f"class {cls!r} is not metric, flag or digest")
    length = None
    if shape is not None:
        dims = (shape,) if isinstance(shape, int) else tuple(shape)
        if not all(isinstance(d, int) and d > 0 for d in dims):
            raise FieldError(f"shape {shape!r}: want positive numbers of elements")
        length = math.prod(dims)
    return Spec(cls, None if dtype is None else _type_of_dtype(dtype), length, unit)


def fields(**specs: str | tuple[str, int] | Spec) -> tuple[Field, ...]:
    """Declares the fields of a record, in order.

    Each is a class ("metric", "flag", "digest"), whose shape and dtype are those of the first value; or a class and a
    length, `("digest", 1024)`, of float64 (flags: uint64); or what `field` returns.
    Raises FieldError for a declaration that cannot be.
    """
    declared = []
    for name, spec in specs.items():
        if isinstance(spec, str):
            spec = Spec(spec, None, None, "")
        elif isinstance(spec, tuple) and len(spec) == 2:
            spec = Spec(spec[0], default_type(spec[0]), spec[1], "")
        elif not isinstance(spec, Spec):
            raise FieldError(f"field {name!r}: declared as {spec!r}: want a class, (class, length) or usp.field(...)")
        f = Field(name, spec.cls, spec.type, spec.len, spec.unit)
        _check(f)
        declared.append(f)
    if not declared:
        raise FieldError("no field is declared: want usp.fields(NAME=CLASS, ...)")
    return tuple(declared)


def default_type(cls: str) -> str:
    """The type of a Python number in a field of this class."""
    return "u64" if cls == "flag" else "f64"


def check_names(declared: Iterable[Field], values: Mapping[str, Any]) -> None:
    """Raises FieldError unless the keys of values are exactly the declared names."""
    misnamed([f.name for f in declared], values)


def misnamed(declared: Iterable[str], values: Mapping[str, Any]) -> None:
    """Raises FieldError unless the keys of values are exactly these names."""
    names = set(declared)
    missing, extra = sorted(names - set(values)), sorted(map(str, set(values) - names))
    if missing:
        raise FieldError(f"no value for {_list(missing)}: each record has all declared fields")
    if extra:
        raise FieldError(f"{_list(extra)} not declared: declare it in usp.fields, or leave it out")


def resolve(declared: Sequence[Field], example: Mapping[str, Any]) -> tuple[Field, ...]:
    """Returns the fields with the lengths and types that are not known yet taken from the example.

    A value is anything with .shape and .dtype (numpy, jax: no data is read), a Python number, or a flat list or tuple
    of those. Numbers of Python are f64 in metrics and digests and u64 in flags.
    Raises FieldError for names that are not those declared, and for values that no field can hold.
    """
    check_names(declared, example)
    return tuple(_resolve(f, example[f.name]) for f in declared)


def _resolve(f: Field, value: Any) -> Field:
    if f.len is not None and f.type is not None:
        return f
    length, typ = _describe(f, value)
    if f.len is not None and f.len != length:
        raise FieldError(f"field {f.name!r}: declared with {f.len} elements, the first value has {length}")
    f = replace(f, len=length, type=f.type or typ)
    _check(f)
    return f


def _describe(f: Field, value: Any) -> tuple[int, str]:
    """Returns number of elements and type of a value."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        try:
            return math.prod(shape), _type_of_dtype(dtype)
        except FieldError as e:
            raise FieldError(f"field {f.name!r}: {e}") from None
    if isinstance(value, (bool, int, float)):
        return 1, "f64" if isinstance(value, float) else default_type(f.cls)
    if isinstance(value, (list, tuple)) and value and not any(isinstance(v, (list, tuple)) for v in value):
        inner = [_describe(f, v) for v in value]
        if all(n == 1 for n, _ in inner):
            types = {t for _, t in inner}
            return len(value), types.pop() if len(types) == 1 else "f64"
    raise FieldError(
        f"field {f.name!r}: a value of type {type(value).__name__}: want a number, an array, or a flat list of numbers"
    )


def _type_of_dtype(dtype: Any) -> str:
    """Returns the type of an element by the name of its dtype, without importing what defines it."""
    if isinstance(dtype, str):
        name = dtype
    else:
        name = getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or str(dtype)
    if name in TYPES:
        return name
    name = {"float": "float64", "int": "int64", "bool_": "bool"}.get(name, name)
    if name.startswith("float8"):
        return "f32"
    if name not in _DTYPES:
        raise FieldError(f"dtype {name}: want a float of at most 64 bits, an integer, or bool")
    return _DTYPES[name]


class Schema:
    """An immutable, ordered set of fields, all of known type and length; digest fields are moved behind all others.

    name, fields (in layout order), text (bytes), sum (SHA-256 of the text), words (8-byte words of a record: step,
    time, fields), offsets (word at which each field begins), payload_len (bytes of a record), stored_words.
    Raises FieldError, with the name of the field at fault.
    """

    __slots__ = ("fields", "name", "offsets", "payload_len", "stored_words", "sum", "text", "words")

    def __init__(self, name: str, fields: Iterable[Field]) -> None:
        given = tuple(fields)
        if not _valid_name(name, "._-"):
            raise FieldError(f"schema name {name!r}: want 1 to {MAX_NAME} of a-z 0-9 . _ -, starting with a letter")
        if not 1 <= len(given) <= MAX_FIELDS:
            raise FieldError(f"schema {name!r} has {len(given)} fields, want 1 to {MAX_FIELDS}")
        ordered = [f for f in given if f.cls != "digest"] + [f for f in given if f.cls == "digest"]
        offsets, seen = [], set()
        words = stored = HEAD_WORDS
        digests = 0
        for f in ordered:
            _check(f)
            if f.type is None or f.len is None:
                raise FieldError(f"field {f.name!r}: its {'type' if f.type is None else 'length'} is not known yet")
            if f.name in seen:
                raise FieldError(f"field {f.name!r} stands twice")
            seen.add(f.name)
            offsets.append(words)
            words += f.len
            if words - HEAD_WORDS > MAX_ELEMENTS:
                raise FieldError(f"more than {MAX_ELEMENTS} elements at field {f.name!r}")
            if f.cls == "digest":
                digests += 1
                if digests > MAX_DIGESTS:
                    raise FieldError(f"more than {MAX_DIGESTS} digest fields at {f.name!r}")
            else:
                stored = words
        self.name = name
        self.fields: tuple[Field, ...] = tuple(ordered)
        self.offsets: tuple[int, ...] = tuple(offsets)
        self.words = words
        self.stored_words = stored
        self.payload_len = 8 * words
        lines = [f"usp-schema v1\nname {name}\n"]
        lines += [f"field {f.name} {f.cls} {f.type} {f.len} {f.unit or '-'}\n" for f in ordered]
        self.text: bytes = "".join(lines).encode("ascii")
        self.sum: bytes = hashlib.sha256(self.text).digest()

    def __repr__(self) -> str:
        return f"Schema({self.name!r}, {list(self.fields)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schema) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


def _check(f: Field) -> None:
    """Raises FieldError for a field that cannot be; what is not known yet passes."""
    if not _valid_name(f.name, "_"):
        raise FieldError(f"field name {f.name!r}: want 1 to {MAX_NAME} of a-z 0-9 _, starting with a letter")
    where = f"field {f.name!r}"
    if f.name in ("step", "time"):
        raise FieldError(f"{where}: every record has step and time already")
    if f.cls not in CLASSES:
        raise FieldError(f"{where}: class {f.cls!r} is not metric, flag or digest")
    if f.type is not None and f.type not in TYPES:
        raise FieldError(f"{where}: type {f.type!r} is not f64, f32, i64 or u64")
    if f.len is not None and (isinstance(f.len, bool) or not isinstance(f.len, int) or not 1 <= f.len <= MAX_ELEMENTS):
        raise FieldError(f"{where}: length {f.len!r}, want 1 to {MAX_ELEMENTS}")
    if f.cls == "digest" and f.type not in (None, "f64", "f32"):
        raise FieldError(f"{where}: a digest field holds f64 or f32, not {f.type}")
    if (
        not isinstance(f.unit, str)
        or f.unit == "-"
        or len(f.unit) > MAX_NAME
        or not all("!" <= c <= "~" for c in f.unit)
    ):
        raise FieldError(f"{where}: unit {f.unit!r}: want printable ASCII without spaces, at most {MAX_NAME} bytes")


def _valid_name(name: object, extra: str) -> bool:
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME or name[0] not in _LOWER:
        return False
    return all(c in _LOWER or c in _DIGITS or c in extra for c in name)


def _list(names: list[str]) -> str:
    shown = ", ".join(repr(n) for n in names[:5])
    return f"field {shown}" if len(names) == 1 else f"fields {shown}" + (", ..." if len(names) > 5 else "")
