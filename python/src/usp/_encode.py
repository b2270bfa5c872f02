"""From a mapping of host values to the words of a record, in pure Python; the extension does the same in C.

Only what is surely in host memory is taken here: numbers of Python, numpy scalars and arrays, array.array, memoryview,
flat lists and tuples of numbers. Anything else may be an array on a device, whose bytes cannot be had without waiting
for it: the record goes to the callable `slow`, unread.
"""

from __future__ import annotations

import math
import struct
import sys
from array import array
from collections.abc import Callable, Mapping
from operator import itemgetter
from time import time_ns
from typing import TYPE_CHECKING, Any, NoReturn

from usp._errors import FieldError, StepError
from usp._schema import Field, check_names

if TYPE_CHECKING:
    from usp._ring import Ring

Slow = Callable[[Any, Any, "int | None"], None]

_SLOW = object()  # a plan: give the record to slow
_F32 = struct.Struct("<f")
_FORMATS = {"f64": "d", "f32": "d", "i64": "q", "u64": "Q"}
_LIMITS = {"i64": (-(1 << 63), (1 << 63) - 1), "u64": (0, (1 << 64) - 1)}
_BUFFERS = (array, memoryview)
_NO_NUMBERS = (str, bytes, bytearray, complex, type(None))


def round_f32(x: float) -> float:
    """Returns the float32 nearest to x, as a float."""
    try:
        return _F32.unpack(_F32.pack(x))[0]
    except OverflowError:
        return math.copysign(math.inf, x)


class Emitter:
    """Emits records of one ring: `emit(step, values, time=None)`.

    step: above the last one, 0 to 2^64-1. values: dict with exactly the declared fields. An array of any shape fits a
    field of as many elements, in row-major order; integers fit float fields, floats do not fit integer fields, float64
    arrays do not fit float32 fields, while Python floats are rounded to float32 there. time: Unix ns, None the clock's.
    Raises FieldError, StepError, ClosedError, ForkedError; no record is written then.

    deferred: while true, every record goes to slow, so that it keeps its place behind those that are queued there.
    A record that goes to slow has been checked for nothing: slow calls Ring.advance.
    """

    __slots__ = ("_fields", "_get", "_pack", "_plans", "_ring", "_slow", "deferred")

    def __init__(self, ring: Ring, fields: tuple[Field, ...], slow: Slow) -> None:
        self.deferred = False
        self._ring = ring
        self._fields = fields
        self._slow = slow
        self._plans: dict[tuple[type, ...], Any] = {}
        names = [f.name for f in fields]
        one = itemgetter(*names)
        self._get = one if len(names) > 1 else lambda values: (one(values),)
        parts = (_FORMATS[str(f.type)] if f.len == 1 else f"{8 * (f.len or 0)}s" for f in fields)
        self._pack = struct.Struct("<Qq" + "".join(parts)).pack

    def emit(self, step: int, values: Mapping[str, Any], time: int | None = None) -> None:
        """Emits one record; see the class."""
        if self.deferred or not isinstance(values, dict):
            return self._slow(step, values, time)
        try:
            given = self._get(values)
        except KeyError:
            check_names(self._fields, values)
            raise
        if len(values) != len(given):
            check_names(self._fields, values)
        types = tuple(map(type, given))
        try:
            plan = self._plans[types]
        except KeyError:
            plan = self._plan(types)
        if plan is _SLOW or (type(step) is not int and not _host_integer(step)):
            return self._slow(step, values, time)
        try:
            row = given
            if plan:
                row = list(given)
                for i, convert in plan:
                    row[i] = convert(row[i])
            payload = self._pack(step, time_ns() if time is None else time, *row)
        except FieldError:
            raise
        except _Elsewhere:
            return self._slow(step, values, time)
        except (struct.error, TypeError, ValueError, OverflowError):
            self._blame(step, values, time)
        self._ring._publish(payload, int(step))

    def _plan(self, types: tuple[type, ...]) -> Any:
        """Returns how to convert values of these types, and keeps it: which places, and with what, or _SLOW."""
        plan: Any = tuple((i, c) for i, c in enumerate(map(_converter, self._fields, types)) if c is not None)
        if any(c is _SLOW for _, c in plan):
            plan = _SLOW
        if len(self._plans) < 256:  # a program that makes types as it goes must not fill memory
            self._plans[types] = plan
        return plan

    def _blame(self, step: int, values: Mapping[str, Any], time: int | None) -> NoReturn:
        """Raises the error that names what could not be packed."""
        for f in self._fields:
            v = values[f.name]
            c = _converter(f, type(v))
            try:
                struct.pack(
                    "<" + (_FORMATS[str(f.type)] if f.len == 1 else f"{8 * (f.len or 0)}s"), v if c is None else c(v)
                )
            except (struct.error, TypeError, ValueError, OverflowError) as e:
                if isinstance(e, FieldError):
                    raise
                raise FieldError(f"field {f.name!r}: {v!r:.80} does not fit {f.type}") from e
        if not 0 <= int(step) < 1 << 64:
            raise StepError(f"step {step}: want 0 to 2^64-1")
        raise FieldError(f"time {time!r}: want Unix nanoseconds, a signed integer of 64 bits")


class _Elsewhere(Exception):
    """A host value that only slow can read."""


def _host_integer(v: Any) -> bool:
    if isinstance(v, int):
        return True
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(v, numpy.integer)


def _converter(f: Field, t: type) -> Any:
    """Returns the function that makes of a value of type t what the packer takes; None if it takes it as it is."""
    real = f.type in ("f64", "f32")
    numpy = sys.modules.get("numpy")
    if issubclass(t, (int, float)) or (numpy is not None and issubclass(t, (numpy.number, numpy.bool_))):
        return _scalar(f, t, real, numpy)
    if issubclass(t, (list, tuple)):
        return lambda v: _sequence(f, v, real)
    if numpy is not None and issubclass(t, numpy.ndarray):
        return _doubles(f, numpy.dtype("<f8")) if f.type == "f64" and f.len != 1 else lambda v: _array(f, v, real)
    if issubclass(t, _BUFFERS):
        return lambda v: _buffer(f, v)
    if issubclass(t, _NO_NUMBERS):
        return lambda v: _refuse(f, f"{t.__name__} is no real number")
    return _SLOW


def _refuse(f: Field, what: str) -> NoReturn:
    raise FieldError(f"field {f.name!r}: {what}; declared {f.type}, {f.len} element{'' if f.len == 1 else 's'}")


def _scalar(f: Field, t: type, real: bool, numpy: Any) -> Any:
    if f.len != 1:
        return lambda v: _refuse(f, f"one {t.__name__}")
    if numpy is not None and issubclass(t, numpy.complexfloating):
        return lambda v: _refuse(f, f"one {t.__name__}")
    if real:
        return None if f.type == "f64" else round_f32
    if issubclass(t, int) or (numpy is not None and issubclass(t, numpy.integer)):
        return None
    if numpy is not None and issubclass(t, numpy.bool_):
        return int
    return lambda v: _refuse(f, f"one {t.__name__}")


def _finish(f: Field, values: list[Any]) -> Any:
    """Packs the elements of a field."""
    letter = _FORMATS[str(f.type)]
    if len(values) != f.len:
        _refuse(f, f"{len(values)} element{'' if len(values) == 1 else 's'}")
    if f.type == "f32":
        values = [round_f32(v) for v in values]
    if f.len == 1:
        return values[0]
    try:
        return struct.pack(f"<{len(values)}{letter}", *values)
    except (struct.error, TypeError, OverflowError) as e:
        for v in values:
            try:
                struct.pack("<" + letter, v)
            except (struct.error, TypeError, OverflowError):
                raise FieldError(f"field {f.name!r}: {v!r:.80} does not fit {f.type}") from e
        raise


def _sequence(f: Field, values: list[Any] | tuple[Any, ...], real: bool) -> Any:
    if len(values) != f.len:
        _refuse(f, f"{type(values).__name__} of {len(values)}")
    numpy = sys.modules.get("numpy")
    out = []
    for v in values:
        t = type(v)
        if not issubclass(t, (int, float)) and (numpy is None or not issubclass(t, (numpy.number, numpy.bool_))):
            if issubclass(t, (list, tuple, *_NO_NUMBERS)):
                _refuse(f, f"{type(values).__name__} with a {t.__name__} in it")
            raise _Elsewhere  # a list of arrays
        c = _scalar(Field(f.name, f.cls, f.type, 1), t, real, numpy)
        out.append(v if c is None else c(v))
    return _finish(f, out)


def _doubles(f: Field, plain: Any) -> Any:
    """Returns what takes arrays for a vector of float64, of which most are of the type plain."""
    n = f.len
    return lambda v: v.tobytes() if v.dtype is plain and v.size == n else _array(f, v, True)


def _array(f: Field, v: Any, real: bool) -> Any:
    """A numpy array, of any strides and byte order."""
    d = v.dtype
    if d.kind not in "fiub":
        if d.kind == "V" and d.names is None:
            raise _Elsewhere  # a float type that numpy does not know itself
        _refuse(f, f"array of {d}")
    if v.size != f.len:
        _refuse(f, f"array of shape {v.shape}")
    if d.itemsize > 8 or (d.kind == "f" and (not real or (f.type == "f32" and d.itemsize == 8))):
        _refuse(f, f"array of {d}")
    if f.type == "f32":
        v = v.astype("<f4")
    if real:
        v = v.astype("<f8", order="C")
    else:
        low, high = _LIMITS[str(f.type)]
        if (d.kind == "i" and low == 0 and (v < 0).any()) or (d.kind == "u" and d.itemsize == 8 and (v > high).any()):
            raise FieldError(f"field {f.name!r}: an element does not fit {f.type}")
        v = v.astype("<i8" if low else "<u8", order="C")
    return v.item() if f.len == 1 else v.tobytes()


def _buffer(f: Field, v: Any) -> Any:
    """An array.array or a memoryview."""
    with memoryview(v) as m:
        letter = m.format.lstrip("@=<")
        real = f.type in ("f64", "f32")
        if len(letter) != 1 or letter not in "fdbBhHiIlLqQ?" + ("e" if real else ""):
            _refuse(f, f"buffer of format {m.format!r}")
        if (letter in "fd" and not real) or (letter == "d" and f.type == "f32"):
            _refuse(f, f"buffer of format {m.format!r}")
        if m.nbytes // m.itemsize != f.len:
            _refuse(f, f"buffer of {m.nbytes // m.itemsize} elements")
        values: list[Any] = m.tolist() if m.ndim else [m[()]]
        for _ in range(m.ndim - 1):
            values = [x for row in values for x in row]
        return _finish(f, values)
