"""The form of a pytree inside of a snapshot: vectors, and that what is written is what is read."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import struct
import sys
from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from usp import SnapshotError
from usp import _pytree as pt
from usp._saver import _describe
from usp._snapshot import _described, _nested, _under

DIR = Path(__file__).resolve().parents[2] / "testdata" / "vectors" / "pytree"
Point = namedtuple("Point", "x y")


@dataclasses.dataclass
class Pair:
    """A dataclass that jax knows."""

    left: Any
    right: Any


jax.tree_util.register_dataclass(Pair)


def contain(state: Any) -> bytes:
    """The container of a state, written over memory that was used before."""
    flat, structure = pt.flatten(state)
    plan = pt.Plan(_describe(flat, pt.paths(state, structure)))
    layout, text = plan.layout(flat)
    memory = bytearray(b"\xa5" * layout.size)

    def put(i: int, dst: memoryview) -> None:
        leaf = flat[i]
        if plan.leaves[i].kind == "key":
            leaf = jax.random.key_data(leaf)
        dst[:] = leaf if isinstance(leaf, bytes) else np.asarray(leaf, order="C").tobytes()

    plan.fill(memoryview(memory), layout, text, put)
    return bytes(memory)


def pack(rows: dict[str, bytes]) -> bytes:
    """A container of these sections."""
    layout = pt.Layout([(name, len(b)) for name, b in rows.items()])
    memory = bytearray(layout.size)
    memory[: len(layout.head)] = layout.head
    for name, b in rows.items():
        memory[layout.offsets[name] : layout.offsets[name] + len(b)] = b
    return bytes(memory)


def example() -> dict[str, Any]:
    """The state of the worked example."""
    w, flags = np.array([[1, 2, 3]], "<f4"), np.array([True, False])
    return {"params": {"w": w, "a/b": flags}, "step": 42, "rate": 0.1, "tag": b"v1", "old": None}


def kinds() -> dict[str, Any]:
    """One leaf of each kind, and what is seldom seen."""
    return {
        "jax": {"f32": jnp.array([1.5, -0.0], jnp.float32), "bf16": jnp.array([[1], [3]], jnp.bfloat16), "weak": jnp.asarray(2.0)},
        "key": jax.random.key(7, impl="threefry2x32"),
        "numpy": [np.array(3.25), np.zeros((0, 3), "i2"), np.arange(6, dtype="<i8").reshape(2, 3).T, np.array([1, -2], ml_dtypes.int4)],
        "fp8": np.array([0.5], ml_dtypes.float8_e4m3fn), "complex": np.array([1 + 2j]), "day": np.array(["2026-01-02"], "M8[D]"),
        "scalar": np.float32(2.5), "nan": struct.unpack(">d", bytes.fromhex("7ff8000000000123"))[0], "negative": -(2**70),
        "z": 1 - 0.5j, "yes": True, "text": "ça \ud800", "bytes": b"", "none": None, "~": 0, "": 1,
    }  # fmt: skip


def build() -> dict[str, tuple[str, str, bytes]]:
    """All vectors: class, note, bytes."""
    good = pt.sections(memoryview(contain(example())))
    parts = {name: bytes(b) for name, b in good.items()}
    doc = json.loads(parts["pytree"])

    def changed(**members: Any) -> bytes:
        leaves = [e | members if e["path"] == "params/w" else e for e in doc["leaves"]]
        return pack(parts | {"pytree": json.dumps({"version": 1, "leaves": leaves}).encode()})

    few, pt.MAX_SECTIONS = pt.MAX_SECTIONS, 2
    try:
        packed = contain({"big": np.arange(20.0), "a": np.array([1, 2], "u1"), "b": b"xyz", "c": np.arange(9, dtype="i2")})
    finally:
        pt.MAX_SECTIONS = few
    return {
        "state.bin": ("ok", "the worked example", contain(example())),
        "kinds.bin": ("ok", "one leaf of each kind", contain(kinds())),
        "packed.bin": ("ok", "small leaves in one section", packed),
        "alone.bin": ("ok", "a state that is one leaf", contain(np.array([7], "i4"))),
        "newer.bin": ("too-new", "version 2", pack(parts | {"pytree": b'{"version":2,"leaves":[]}'})),
        "none.bin": ("not-ours", "no section pytree", pack({k: v for k, v in parts.items() if k != "pytree"})),
        "json.bin": ("corrupt", "half of the JSON", pack(parts | {"pytree": parts["pytree"][:100]})),
        "gone.bin": ("corrupt", "the section of a leaf is not there", pack({k: v for k, v in parts.items() if k != "params.w"})),
        "short.bin": ("corrupt", "a section is shorter than its leaf", pack(parts | {"params.w": b"12345678"})),
        "long.bin": ("corrupt", "a section is longer than its leaf", pack(parts | {"params.w": b"1234567812345678"})),
        "shape.bin": ("corrupt", "a negative length", changed(shape=[-1, -3])),
        "kind.bin": ("corrupt", "a kind that there is not", changed(kind="torch")),
        "offset.bin": ("corrupt", "an offset in a section that is the leaf's own", changed(offset=64, shape=[0])),
    }


def look(leaf: pt.Leaf, found: dict[str, memoryview]) -> dict[str, Any]:
    """A leaf as the index has it."""
    value = pt.value(leaf, found)
    entry: dict[str, Any] = {"path": leaf.path, "kind": leaf.kind}
    if not leaf.section:
        return entry | {"value": pt.encode_scalar(leaf.kind, value)}
    if leaf.dtype:
        entry |= {"dtype": leaf.dtype, "shape": list(leaf.shape)}
    return entry | {"hex": (value if isinstance(value, bytes) else value.tobytes()).hex()}


def classify(data: bytes) -> tuple[str, list[dict[str, Any]]]:
    """What a reader says of a container."""
    try:
        found = pt.sections(memoryview(data))
        return "ok", [look(leaf, found) for leaf in _described(found)]
    except SnapshotError as err:
        for text, name in (("newer usp package", "too-new"), ("not saved by this package", "not-ours")):
            if text in str(err):
                return name, []
        return "corrupt", []


def test_vectors() -> None:
    built = build()
    if os.environ.get("UPDATE_VECTORS"):
        DIR.mkdir(exist_ok=True)
        rows = []
        for name, (cls, note, data) in built.items():
            (DIR / name).write_bytes(data)
            rows.append({"file": name, "class": cls, "note": note} | ({"leaves": classify(data)[1]} if cls == "ok" else {}))
        (DIR / "index.json").write_text(json.dumps({"format": "pytree", "vectors": rows}, indent=1) + "\n")
    index = json.loads((DIR / "index.json").read_text())["vectors"]
    assert [v["file"] for v in index] == list(built)
    for v in index:
        data = (DIR / v["file"]).read_bytes()
        assert data == built[v["file"]][2], f"{v['file']}: this program writes other bytes"
        assert classify(data) == (v["class"], v.get("leaves", [])), v["file"]


def test_worked_example_is_on_the_page() -> None:
    page = (DIR.parents[2] / "doc" / "format" / "pytree.md").read_text()
    data = (DIR / "state.bin").read_bytes()
    lines = [line for line in page.splitlines() if len(line) > 6 and line[:4].strip("0123456789abcdef") == "" and line[4:6] == "  "]
    assert len(lines) > 8
    for line in lines:
        at, text = int(line[:4], 16), line[6:].split("   ")[0]
        want = bytes.fromhex(text.replace(" ", "").replace("…", ""))
        assert data[at : at + len(want)] == want, line


def test_every_byte_of_the_table_counts() -> None:
    data = (DIR / "state.bin").read_bytes()
    end = 32 + 80 * 4
    for i in range(end):
        bad = bytearray(data)
        bad[i] ^= 1
        with pytest.raises(SnapshotError):
            pt.sections(memoryview(bad))
    for n in (0, 7, 31, end, len(data) - 1):
        with pytest.raises(SnapshotError):
            pt.sections(memoryview(data[:n]))


dtypes = st.sampled_from(["<f4", "<f8", "<i1", "<u2", "<i8", "?", "<c8", ">f8", ">i4", ml_dtypes.bfloat16, ml_dtypes.float8_e5m2, ml_dtypes.uint4])


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    data = draw(st.binary(min_size=math.prod(shape), max_size=math.prod(shape)))
    array = np.frombuffer(data, "u1").reshape(shape).astype(draw(dtypes))
    return array.T if draw(st.booleans()) else array


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(), st.text(), st.binary(), arrays(),
    st.builds(np.int16, st.integers(-9, 9)), st.builds(np.float64, st.floats(allow_nan=False)),
)  # fmt: skip
names = st.text(st.sampled_from("ab/~.é 0"), max_size=4)
trees = st.recursive(
    scalars,
    lambda t: st.one_of(
        st.dictionaries(names, t, max_size=4), st.lists(t, max_size=4), st.builds(Point, t, t), st.builds(Pair, t, t),
        st.lists(t, max_size=3).map(tuple), st.dictionaries(names, t, max_size=3).map(OrderedDict),
    ),
    max_leaves=12,
)  # fmt: skip


def same(a: Any, b: Any) -> bool:
    """Alike to the bit, in what a snapshot keeps."""
    if isinstance(a, np.ndarray | np.generic):
        little = a.astype(a.dtype.newbyteorder("=")) if a.dtype.kind != "V" else a
        return type(a) is type(b) and a.shape == b.shape and little.dtype == b.dtype and little.tobytes() == b.tobytes()
    if isinstance(a, float | complex):
        return type(a) is type(b) and struct.pack(">dd", a.real, a.imag) == struct.pack(">dd", b.real, b.imag)
    return type(a) is type(b) and bool(a == b)


def contain_little(state: Any) -> bytes:
    return contain(jax.tree.map(lambda a: a.astype(a.dtype.newbyteorder("=")) if isinstance(a, np.ndarray) and not a.dtype.isnative else a, state))


@settings(max_examples=200, deadline=None)
@given(trees)
def test_round_trip(state: Any) -> None:
    flat, structure = pt.flatten(state)
    found = pt.sections(memoryview(contain_little(state)))
    leaves = pt.leaves(found["pytree"])
    assert [leaf.path for leaf in leaves] == pt.paths(state, structure)
    assert all(same(a, pt.value(leaf, found)) for a, leaf in zip(flat, leaves, strict=True))


@settings(max_examples=200, deadline=None)
@given(trees)
def test_without_jax_the_same(state: Any) -> None:
    flat, structure = pt.flatten(state)
    paths = pt.paths(state, structure)
    with pytest.MonkeyPatch.context() as m:
        m.delitem(sys.modules, "jax")
        bare, plain = pt.flatten(state)
        assert pt.paths(state, plain) == paths
        assert len(bare) == len(flat) and all(x is y for x, y in zip(bare, flat, strict=True))
        again = pt.unflatten(plain, bare)
    again_flat, again_structure = pt.flatten(again)
    assert again_structure == structure and all(x is y for x, y in zip(again_flat, flat, strict=True))
    assert pt.split(pt.join(["a/b", "~", "~1"])) == ["a/b", "~", "~1"]


def test_many_leaves_share_a_section() -> None:
    state = {f"l{i:04}": np.full(i % 7, i, "i4") for i in range(5000)} | {"large": np.arange(1000.0)}
    found = pt.sections(memoryview(contain(state)))
    assert len(found) == pt.MAX_SECTIONS + 1 and "packed" in found and "large" in found
    got = _nested(_described(found), found)
    assert got.keys() == state.keys() and all(same(state[k], got[k]) for k in state)


@pytest.mark.parametrize(("state", "says"), [
    ({"a": {"f": print}}, "a/f is a builtins.builtin_function_or_method"),
    ({"o": np.array([None])}, "o is of dtype object"),
    ({"u": np.array(["x"])}, "u is of dtype <U1"),
    ({"v": np.zeros(2, [("x", "f4")])}, "v is of dtype"),
    ({"w": np.zeros(2, "V8")}, "w is of dtype"),
    ({"k": {1: 0, "1": 0}}, "cannot be ordered|not supported|Comparator"),
    ([[1], {"0": 2}][1:] + [3, 3], None),
])  # fmt: skip
def test_what_cannot_be_saved(state: Any, says: str | None) -> None:
    if says is None:
        contain(state)
        return
    with pytest.raises((SnapshotError, ValueError), match=says):
        contain(state)


def test_same_path_twice() -> None:
    class Odd:
        """A container whose children have one name."""

    jax.tree_util.register_pytree_with_keys(
        Odd, lambda _: ([(jax.tree_util.DictKey("x"), 1), (jax.tree_util.DictKey("x"), 2)], None), lambda _, c: Odd()
    )
    with pytest.raises(SnapshotError, match="two leaves of the state have the path odd/x"):
        contain({"odd": Odd()})


def test_inside_jit() -> None:
    with pytest.raises(SnapshotError, match="inside of a function that jax traces"):
        jax.jit(lambda x: contain({"x": x}))(1.0)


def test_paths_choose() -> None:
    found = pt.sections(memoryview(contain({"ab": 1, "a": {"b": 2, "c": [3, 4]}, "d": 5})))
    leaves = _described(found)
    assert _nested(_under(leaves, ["a/c", "d"]), found) == {"a": {"c": {"0": 3, "1": 4}}, "d": 5}
    assert [leaf.path for leaf in _under(leaves, ["a"])] == ["a/b", "a/c/0", "a/c/1"]
    with pytest.raises(SnapshotError, match=r"no leaf at or below a/x; it has a/b, "):
        _under(leaves, ["d", "a/x"])
    with pytest.raises(SnapshotError, match="want a list of paths"):
        _under(leaves, "a")
