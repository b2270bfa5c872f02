"""What an emitter takes, what it refuses and how it says so: the same in Python and in C."""

from __future__ import annotations

import math
import os
import struct
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ringreader

from usp._errors import ClosedError, FieldError, StepError
from usp._ring import Ring, native_available
from usp._schema import Field, Schema

np = pytest.importorskip("numpy")


class Bench:
    """A ring, its emitter, and what went to slow."""

    def __init__(self, directory: Path, native: bool, *fields: Field) -> None:
        self.schema = Schema("t", fields)
        self.ring = Ring(
            directory / f"{len(os.listdir(directory))}.ring", "r", self.schema, b"", slots=1 << 10, native=native
        )
        self.slow: list[tuple[Any, Any, Any]] = []
        self.emit = self.ring.emitter(lambda *a: self.slow.append(a))
        self.step = 0

    def one(self, values: Any, **more: Any) -> tuple[Any, ...]:
        """Emits values and returns the words of the fields, floats as bits."""
        before = len(self.slow)
        assert self.emit(self.step, values, **more) is None
        self.step += 1
        assert len(self.slow) == before, "it went to slow"
        payload = ringreader.read(self.ring.path).records[-1][1]
        return struct.unpack(f"<{len(payload) // 8}Q", payload)[2:]

    def refused(self, values: Any, match: str) -> None:
        """The record is refused, nothing is written, and the step can be used again."""
        before, last = self.ring.position, self.ring.last_step
        with pytest.raises(FieldError, match=match):
            self.emit(self.step, values)
        assert (self.ring.position, self.ring.last_step, self.slow) == (before, last, [])


@pytest.fixture(params=["pure", "native"])
def bench(request: pytest.FixtureRequest, ring_dir: Path) -> Iterator[Callable[..., Bench]]:
    if request.param == "native" and (why := native_available()):
        pytest.skip(f"the extension is not here: {why}")
    made: list[Bench] = []

    def make(*fields: Field) -> Bench:
        made.append(Bench(ring_dir, request.param == "native", *fields))
        return made[-1]

    yield make
    for b in made:
        b.ring.close()


def bits(*xs: float) -> tuple[int, ...]:
    return struct.unpack(f"<{len(xs)}Q", struct.pack(f"<{len(xs)}d", *xs))


def f32(x: float) -> float:
    return float(np.float32(x))


F64, F32, I64, U64 = (Field("x", "metric", t, 1) for t in ("f64", "f32", "i64", "u64"))
V64, V32, VI, VU = (Field("v", "metric", t, 6) for t in ("f64", "f32", "i64", "u64"))


def test_scalars_in_float_fields(bench: Callable[..., Bench]) -> None:
    b, c = bench(F64), bench(F32)
    for v in (
        1.5, 0.1, -0.0, math.inf, -math.inf, 5e-324, 1.7e308, 3, -7, (1 << 53) + 1, 1 << 1000, True, np.float64(0.1),
        np.float32(0.1), np.float16(0.1),
        np.int8(-3), np.uint64((1 << 64) - 1), np.bool_(True), np.int32(5), np.longdouble(0.5),
    ):  # fmt: skip
        assert b.one({"x": v}) == bits(float(v)), v
        if not isinstance(v, int) or abs(v) < 1 << 60:
            with np.errstate(over="ignore"):
                assert c.one({"x": v}) == bits(f32(float(v))), v
    assert math.isnan(struct.unpack("<d", struct.pack("<Q", *b.one({"x": math.nan})))[0])
    signalling = struct.unpack("<d", struct.pack("<Q", 0x7FF8DEADBEEF0001))[0]
    assert b.one({"x": signalling}) == (0x7FF8DEADBEEF0001,)
    assert c.one({"x": 1e300}) == bits(math.inf) and c.one({"x": -1e300}) == bits(-math.inf)
    assert c.one({"x": 1e-46}) == bits(0.0)
    b.refused({"x": 1 << 1024}, "'x'.*does not fit f64")


def test_scalars_in_integer_fields(bench: Callable[..., Bench]) -> None:
    b, c = bench(I64), bench(U64)
    for v in (0, 1, True, False, (1 << 63) - 1, np.int8(3), np.uint16(9), np.bool_(True), np.bool_(False), np.int64(7)):
        assert b.one({"x": v}) == c.one({"x": v}) == (int(v),)
    assert b.one({"x": -1}) == ((1 << 64) - 1,) and b.one({"x": np.int32(-2)}) == ((1 << 64) - 2,)
    assert c.one({"x": (1 << 64) - 1}) == c.one({"x": np.uint64((1 << 64) - 1)}) == ((1 << 64) - 1,)
    for v in (1 << 63, -(1 << 63) - 1, np.uint64(1 << 63)):
        b.refused({"x": v}, "'x'.*does not fit i64")
    for v in (1 << 64, -1, np.int8(-1)):
        c.refused({"x": v}, "'x'.*does not fit u64")
    for v in (1.0, np.float32(1), np.float64(1), 1j, np.complex64(1), "1", b"1", None, [1.0]):
        b.refused({"x": v}, "'x'")


def six(dtype: Any) -> Any:
    """Six numbers that every dtype holds."""
    return np.array([1, 0, 3, 4, 100, 6]).astype(dtype)


@pytest.mark.parametrize(
    "dtype", ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?", ">f8", ">f4", ">i8", ">u2", ">f2"]
)
def test_arrays(bench: Callable[..., Bench], dtype: str) -> None:
    a = six(dtype)
    for b, target in ((bench(V64), "f8"), (bench(V32), "f4"), (bench(VI), "i8"), (bench(VU), "u8")):
        if a.dtype.kind == "f" and target in ("i8", "u8") or (a.dtype.itemsize, target, a.dtype.kind) == (8, "f4", "f"):
            b.refused(
                {"v": a},
                f"'v': array of {'>' if a.dtype.byteorder == '>' else a.dtype.name}",
            )
            continue
        whole = a.astype(target).astype("f8") if target[0] == "f" else a.astype("i8")
        want = tuple(int(w) for w in whole.view("u8"))
        doubled = np.repeat(a, 2)[::2]  # strided
        for v in (
            a, a.reshape(2, 3), a.reshape(3, 1, 2), a.reshape(2, 3).T.copy().T, np.asfortranarray(a.reshape(2, 3)),
            doubled, a[::-1].copy()[::-1],
            np.broadcast_to(a, (1, 6)), doubled.reshape(2, 3),
        ):  # fmt: skip
            assert b.one({"v": v}) == want, (v.shape, v.strides)
    b = bench(Field("x", "metric", "f64", 1))
    if np.dtype(dtype).itemsize < 8:
        for v in (a[2:3], a[2:3].reshape(1, 1), a[2:3].reshape(())):
            assert b.one({"x": v}) == bits(float(a[2]))


def test_broadcast_and_negative_strides(bench: Callable[..., Bench]) -> None:
    b = bench(V64)
    base = np.arange(24.0).reshape(2, 3, 4)
    for v in (
        np.broadcast_to(2.5, (2, 3)),
        base[::-1, ::-1, 1],
        base[:, :, ::-2][0],
        base[1, ::-1, ::3],
        base[:, :, 0],
    ):
        assert b.one({"v": v}) == bits(*map(float, np.ascontiguousarray(v).ravel()))


def test_numbers_that_do_not_fit_in_arrays(bench: Callable[..., Bench]) -> None:
    i, u = bench(VI), bench(VU)
    i.refused({"v": np.full(6, 1 << 63, "u8")}, "'v'.*does not fit i64")
    for dtype in ("i8", "i4", "i2", "i1"):
        u.refused({"v": np.array([1, 2, 3, 4, 5, -1], dtype)}, "'v'.*does not fit u64")
        assert i.one({"v": np.full(6, -2, dtype)}) == ((1 << 64) - 2,) * 6
    assert u.one({"v": np.full(6, (1 << 64) - 1, "u8")}) == ((1 << 64) - 1,) * 6


def test_rounding_is_once(bench: Callable[..., Bench]) -> None:
    """Integers go to float32 in one step, as numpy's do: by way of float64 some come out otherwise."""
    b = bench(V32)
    a = np.array([(1 << 62) + (1 << 38) + 1, (1 << 24) + 1, (1 << 24) + 3, -(1 << 60) - 1, 7, (1 << 53) + 1], "i8")
    assert b.one({"v": a}) == bits(*map(float, a.astype("f4")))


def test_half_floats(bench: Callable[..., Bench]) -> None:
    """All of them."""
    b = bench(Field("v", "digest", "f64", 4096))
    for k in range(16):
        a = np.arange(4096 * k, 4096 * (k + 1), dtype="u2").view("f2")
        got = np.array(b.one({"v": a}), "u8").view("f8")
        want = a.astype("f8")
        assert np.array_equal(got, want, equal_nan=True) and np.array_equal(np.signbit(got), np.signbit(want))


def test_bfloat16_goes_to_slow(bench: Callable[..., Bench]) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    b = bench(V64)
    values = {"v": np.ones(6, ml_dtypes.bfloat16)}
    b.emit(1, values)
    assert b.slow == [(1, values, None)] and b.ring.position == 0


def test_sequences_and_buffers(bench: Callable[..., Bench]) -> None:
    b, c, i = bench(V64), bench(V32), bench(VI)
    mixed = [1.5, 2, True, np.float32(0.1), np.int8(-4), np.float64(0.25)]
    assert b.one({"v": mixed}) == b.one({"v": tuple(mixed)}) == bits(*map(float, mixed))
    assert c.one({"v": mixed}) == bits(*(f32(float(x)) for x in mixed))
    assert i.one({"v": [1, True, np.uint8(7), -1, 0, 3]}) == (1, 1, 7, (1 << 64) - 1, 0, 3)
    for letter in "dfbBhHiIlLqQ":
        a = array(letter, [1, 2, 3, 4, 5, 6])
        assert b.one({"v": a}) == b.one({"v": memoryview(a)}) == bits(1, 2, 3, 4, 5, 6)
    assert b.one({"v": memoryview(array("d", range(12)))[::2]}) == bits(0, 2, 4, 6, 8, 10)
    assert b.one({"v": memoryview(np.arange(6.0).reshape(2, 3))}) == bits(0, 1, 2, 3, 4, 5)
    c.refused({"v": array("d", [0] * 6)}, "'v'.*f32, 6 elements")
    i.refused({"v": array("f", [0] * 6)}, "'v'.*i64, 6 elements")
    for bad in (
        [1.0] * 5, [1.0] * 7, [], [[1.0]] * 6, ["1"] * 6, [None] * 6, [1j] * 6, [1.0] * 5 + [b"x"], array("d", [1.0]),
        memoryview(b"abcdef").cast("c"),
        1.0, 3, np.float32(1), "abcdef", b"abcdef", bytearray(6), None, [1 << 1024] * 6, [np.complex64(1)] * 6,
    ):  # fmt: skip
        b.refused({"v": bad}, "'v'")
    i.refused({"v": [1, 2, 3, 4, 5, 6.0]}, "'v'")
    i.refused({"v": [1, 2, 3, 4, 5, 1 << 63]}, "'v'.*does not fit i64")


def test_wrong_arrays(bench: Callable[..., Bench]) -> None:
    b = bench(V64)
    for bad, says in (
        (np.zeros(5), r"shape \(5,\)"), (np.zeros((2, 4)), r"shape \(2, 4\)"), (np.zeros(()), r"shape \(\)"),
        (np.zeros(0), r"shape \(0,\)"),
        (np.zeros(6, "c8"), "complex64"), (np.zeros(6, "O"), "object"), (np.zeros(6, "g"), "float128|longdouble"),
        (np.zeros(6, [("a", "f8")]), "'v'"),
    ):  # fmt: skip
        b.refused({"v": bad}, says)
    b.refused({"v": np.zeros(6, "U3")}, "'v'")


def test_names(bench: Callable[..., Bench]) -> None:
    b = bench(F64, Field("y", "flag", "u64", 1))
    b.refused({"x": 1.0}, "field 'y'.*each record has all")
    b.refused({}, "fields 'x', 'y'")
    b.refused({"x": 1.0, "y": 1, "z": 2}, "field 'z' not declared")
    b.refused({"x": 1.0, "z": 2}, "field 'y'")
    b.refused({"x": object(), "z": 2}, "field 'y'")
    b.refused({"x": 1.0, "y": 0.5}, "'y': one float; declared u64, 1 element$")
    b.one({"y": 1, "x": 2.0})
    b.one({"".join(["x"]): 1.0, "".join(["y"]): 2})  # other objects with the same text


def test_steps(bench: Callable[..., Bench]) -> None:
    b = bench(F64)
    b.emit(0, {"x": 1.0})
    b.emit(np.int64(5), {"x": 1.0})
    b.emit(step=np.uint8(6), values={"x": 1.0})
    for bad in (6, 0, np.int32(4)):
        with pytest.raises(StepError, match=f"step {int(bad)} is not above 6"):
            b.emit(bad, {"x": 1.0})
    for bad in (-1, 1 << 64, np.int8(-3)):
        with pytest.raises(StepError, match="want 0 to"):
            b.emit(bad, {"x": 1.0})
    assert b.ring.position == 3 and b.ring.last_step == 6
    b.ring.advance(10)
    with pytest.raises(StepError, match="above 10"):
        b.emit(10, {"x": 1.0})
    b.emit((1 << 64) - 1, {"x": 1.0})
    steps = [struct.unpack_from("<Q", p)[0] for _, p in ringreader.read(b.ring.path).records]
    assert steps == [0, 5, 6, (1 << 64) - 1] and b.slow == []
    with pytest.raises(StepError):
        b.emit((1 << 64) - 1, {"x": 1.0})


def test_time(bench: Callable[..., Bench]) -> None:
    b = bench(F64)
    before = time.time_ns()
    b.emit(1, {"x": 1.0})
    after = time.time_ns()
    for step, t in ((2, 77), (3, -5), (4, np.int64(9)), (5, (1 << 63) - 1), (6, None)):
        b.emit(step, {"x": 1.0}, t)
    b.emit(7, {"x": 1.0}, time=12)
    times = [struct.unpack_from("<q", p, 8)[0] for _, p in ringreader.read(b.ring.path).records]
    assert (
        before <= times[0] <= after
        and times[1:5] == [77, -5, 9, (1 << 63) - 1]
        and times[5] >= after
        and times[6] == 12
    )
    for bad in (1 << 63, -(1 << 63) - 1, 1.5, "now"):
        with pytest.raises(FieldError, match=r"time .*nanoseconds"):
            b.emit(8, {"x": 1.0}, bad)
    assert b.ring.position == 7


def test_arguments(bench: Callable[..., Bench]) -> None:
    b = bench(F64)
    for args, named in (
        ((), {}),
        ((1,), {}),
        ((1, {"x": 1.0}, 2, 3), {}),
        ((1, {"x": 1.0}), {"when": 1}),
        ((1, {"x": 1.0}), {"step": 1}),
    ):
        with pytest.raises(TypeError):
            b.emit(*args, **named)
    b.emit(time=3, values={"x": 1.0}, step=2)
    assert b.ring.position == 1


class Device:
    """Stands for an array on a device: whoever asks for its data has to wait, which is forbidden here."""

    shape, dtype = (6,), "float64"

    def __array__(self, *a: object, **k: object) -> Any:
        raise AssertionError("data was asked for")

    __float__ = __index__ = __int__ = __len__ = __iter__ = __bool__ = __array__


def test_what_is_on_a_device_goes_to_slow(bench: Callable[..., Bench]) -> None:
    b = bench(F64, V64)
    d, a = Device(), np.ones(6)
    given = [
        (1, {"x": d, "v": a}, None), (1, {"x": 1.0, "v": d}, 5), (d, {"x": 1.0, "v": a}, None), (1, {"x": 1.0,
        "v": [d] * 6}, None), (1, d, None),
        (1, {"x": {}, "v": a}, None),
    ]  # fmt: skip
    for args in given:
        assert b.emit(*args) is None
    assert len(b.slow) == len(given) and all(
        x is y for got, want in zip(b.slow, given, strict=True) for x, y in zip(got, want, strict=True)
    )
    assert b.ring.position == 0 and b.ring.last_step == -1


def test_slow_may_raise(bench: Callable[..., Bench]) -> None:
    b = bench(F64)

    def slow(*_: Any) -> None:
        raise StepError("no")

    emit = b.ring.emitter(slow)
    with pytest.raises(StepError, match="no"):
        emit(1, {"x": Device()})
    emit(1, {"x": 1.0})


def test_jax_arrays_are_not_read(bench: Callable[..., Bench]) -> None:
    jnp = pytest.importorskip("jax.numpy")
    b = bench(F64, V64)
    for values in (
        {"x": jnp.float32(1), "v": np.ones(6)},
        {"x": 1.0, "v": jnp.ones(6)},
        {"x": 1.0, "v": [jnp.float32(1)] * 6},
    ):
        b.emit(1, values)
    b.emit(jnp.int32(1), {"x": 1.0, "v": np.ones(6)})
    assert len(b.slow) == 4 and b.ring.position == 0


def test_deferred(bench: Callable[..., Bench]) -> None:
    """Records behind queued ones go the same way."""
    b = bench(F64)
    emitter: Any = b.emit.__self__  # type: ignore[attr-defined]
    assert emitter.deferred is False
    emitter.deferred = True
    b.emit(1, {"x": 1.0}, 7)
    assert b.slow == [(1, {"x": 1.0}, 7)] and b.ring.position == 0 and emitter.deferred is True
    emitter.deferred = False
    b.emit(1, {"x": 1.0})
    assert b.ring.position == 1


def test_closed(bench: Callable[..., Bench]) -> None:
    b = bench(F64)
    b.emit(1, {"x": 1.0})
    b.ring.finish(True)
    with pytest.raises(ClosedError, match="closed"):
        b.emit(2, {"x": 1.0})
    b.ring.close()
    with pytest.raises(ClosedError):
        b.emit(3, {"x": 1.0})


def test_subclass_of_dict_and_of_array(bench: Callable[..., Bench]) -> None:
    from collections import OrderedDict

    b = bench(V64)
    assert b.one(OrderedDict(v=np.arange(6.0))) == bits(*range(6))

    class Mine(np.ndarray):
        pass

    assert b.one({"v": np.arange(6.0).view(Mine)}) == bits(*range(6))


def test_values_that_run_code(bench: Callable[..., Bench]) -> None:
    """A number whose conversion emits itself, or empties the dict it came in, does no harm."""
    b = bench(F64, Field("y", "metric", "f64", 1))

    class Sly(float):
        pass

    class Index(int):
        pass

    values: dict[str, Any] = {"x": Sly(1.5), "y": Index(3)}
    assert b.one(values) == bits(1.5, 3)


def test_threads(bench: Callable[..., Bench]) -> None:
    """Several threads, one sequence of steps: what is refused is not written, what is written is whole and in order."""
    b = bench(V64)
    ok = [0] * 4

    def work(k: int) -> None:
        for s in range(k, 250 * 4, 4):
            try:
                b.emit(s, {"v": [float(s)] * 6})
                ok[k] += 1
            except StepError:
                pass

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    b.ring.finish(True)
    records = [struct.unpack("<Qq6d", p) for _, p in ringreader.read(b.ring.path).records]
    steps = [r[0] for r in records]
    assert len(steps) == sum(ok) and steps == sorted(set(steps)) and steps[-1] == 999
    assert all(r[2:] == (float(r[0]),) * 6 for r in records)


def test_long_records(bench: Callable[..., Bench]) -> None:
    """Longer than what the stack takes."""
    b = bench(Field("v", "digest", "f64", 5000), F64)
    a = np.arange(5000.0)
    words = b.one({"v": a, "x": 1.5})
    assert words == bits(1.5, *map(float, a))
    b.refused({"v": a[1:], "x": 1.5}, "'v'")


def test_most_plans_are_not_kept(ring_dir: Path) -> None:
    """A program that makes types as it goes does not fill the memory of the pure emitter."""
    b = Bench(ring_dir, False, F64)
    for _ in range(1000):
        b.emit(1, {"x": type("T", (), {})()})
    assert len(b.slow) == 1000 and len(b.emit.__self__._plans) <= 256  # type: ignore[attr-defined]
    b.ring.close()


def durations(path: str | os.PathLike[str]) -> tuple[dict[int, int], int, int]:
    """Which words of doc/format/ring.md count how much, and the longest and the sum of what they count."""
    with open(path, "rb") as f:
        words = struct.unpack("<95Q", f.read(1024)[256:1016])
    return {i: n for i, n in enumerate(words[:93]) if n}, words[93], words[94]


def bounds(i: int) -> tuple[int, int]:
    """The shortest and the longest duration of word i, as that page has it."""
    if i < 4:
        return i, i
    shift = i // 4 - 1
    first = (i % 4 + 4) << shift
    return first, (first + (1 << shift) - 1 if i < 92 else 1 << 63)


def test_timed(bench: Callable[..., Bench]) -> None:
    """All of the first records are timed, then few: by C only, since Python's look at the clock costs too much."""
    b = bench(F64)
    for _ in range(1024):
        b.emit(b.step, {"x": 1.0})
        b.step += 1
    for _ in range(512):
        b.emit(b.step, {"x": object()})  # to slow, which takes its time too
        b.step += 1
    counts, longest, total = durations(b.ring.path)
    if not b.ring.native:
        assert (counts, longest, total) == ({}, 0, 0)
        return
    assert sum(counts.values()) == 1024 + 2
    assert longest <= total <= 1026 * longest
    assert any(low <= longest <= high for low, high in map(bounds, counts))
    assert sum(n * bounds(i)[0] for i, n in counts.items()) <= total
    assert total <= sum(n * bounds(i)[1] for i, n in counts.items())


def test_long_duration(bench: Callable[..., Bench]) -> None:
    """What takes 20 ms is in the last word."""
    b = bench(F64)
    b.emit = b.ring.emitter(lambda *_: time.sleep(0.02))
    b.emit(0, {"x": object()})
    if b.ring.native:
        counts, longest, total = durations(b.ring.path)
        assert counts == {92: 1}
        assert longest == total >= 20_000_000
