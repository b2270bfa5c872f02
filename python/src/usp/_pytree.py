"""A pytree as sections of a snapshot, and back; the format is doc/format/pytree.md.

Here is what needs no device and no recorder: the leaves of a state with their paths, the plan of where each one's bytes
go, and the reading of a container that was loaded. jax is used where the program has imported it; without it, dicts,
lists, tuples, named tuples and dataclasses are taken apart alike, so that both find the same paths.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
import struct
import sys
import zlib
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ._errors import SnapshotError

if TYPE_CHECKING:
    import numpy as np

VERSION = 1
PYTREE = "pytree"  # the section that describes the others
PACKED = "packed"  # the section of small leaves, where there are too many for one each
MAX_SECTIONS = 4000  # of leaves; the format of snapshots allows 4096 in all
ALIGN = 64
_HEADER, _ROW = struct.Struct("<8sIIQII"), struct.Struct("<64sQQ")
_BARE = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_SCALARS: dict[type, str] = {int: "int", float: "float", complex: "complex", bool: "bool", str: "str", type(None): "none"}


def aligned(n: int) -> int:
    """n rounded up to where a section may begin."""
    return -(-n // ALIGN) * ALIGN


# Taking apart


def _is_none(node: Any) -> bool:
    return node is None


def _key(entry: Any) -> str:
    for name in ("key", "idx", "name"):
        if hasattr(entry, name):
            return str(getattr(entry, name))
    return str(entry)


def join(keys: Sequence[str]) -> str:
    """The path of a leaf: its keys joined by slashes; in a key, ~ is written ~0 and / is written ~1."""
    return "/".join(key.replace("~", "~0").replace("/", "~1") for key in keys)


def split(path: str) -> list[str]:
    """The reverse of join."""
    return [key.replace("~1", "/").replace("~0", "~") for key in path.split("/")] if path else []


def _children(node: Any) -> list[tuple[str, Any]] | None:
    """Keys and children of what is taken apart without jax; None: a leaf."""
    if type(node) in (dict, OrderedDict, defaultdict):
        try:
            return [(str(key), node[key]) for key in (node if type(node) is OrderedDict else sorted(node))]
        except TypeError as err:
            raise SnapshotError(f"the keys of a dict in the state cannot be ordered: {err}") from err
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        return list(zip(node._fields, node, strict=True))
    if type(node) in (list, tuple):
        return [(str(i), child) for i, child in enumerate(node)]
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        return [(f.name, getattr(node, f.name)) for f in dataclasses.fields(node)]
    return None


class _Structure:
    """What jax calls a treedef, for programs without jax."""

    def __init__(self, node: Any) -> None:
        self._node = node
        self.paths: list[str] = []
        self.leaves: list[Any] = []
        self._walk(node, [])

    def _walk(self, node: Any, keys: list[str]) -> None:
        children = _children(node)
        if children is None:
            self.paths.append(join(keys))
            self.leaves.append(node)
            return
        for key, child in children:
            self._walk(child, [*keys, key])

    def unflatten(self, leaves: Sequence[Any]) -> Any:
        """A tree like the one taken apart, with other leaves."""
        return self._build(self._node, iter(leaves))

    def _build(self, node: Any, leaves: Iterator[Any]) -> Any:
        children = _children(node)
        if children is None:
            return next(leaves)
        if isinstance(node, dict):
            built = copy.copy(node)
            for key in node if type(node) is OrderedDict else sorted(node):
                built[key] = self._build(node[key], leaves)
            return built
        parts = [self._build(child, leaves) for _, child in children]
        if isinstance(node, tuple) and hasattr(node, "_fields"):
            return type(node)(*parts)
        if isinstance(node, list | tuple):
            return type(node)(parts)
        return dataclasses.replace(node, **dict(zip((key for key, _ in children), parts, strict=True)))


def flatten(state: Any) -> tuple[list[Any], Any]:
    """The leaves of a state, None among them, and its structure, which `paths` and `unflatten` take."""
    jax = sys.modules.get("jax")
    if jax is None:
        structure = _Structure(state)
        return structure.leaves, structure
    leaves, treedef = jax.tree_util.tree_flatten(state, is_leaf=_is_none)
    return leaves, treedef


def paths(state: Any, structure: Any) -> list[str]:
    """The path of each leaf, in the order of flatten. Raises SnapshotError if two leaves have the same."""
    if isinstance(structure, _Structure):
        found = structure.paths
    else:
        keyed, _ = sys.modules["jax"].tree_util.tree_flatten_with_path(state, is_leaf=_is_none)
        found = [join([_key(entry) for entry in keys]) for keys, _ in keyed]
    if len(set(found)) != len(found):
        seen: set[str] = set()
        twice = next(path for path in found if path in seen or seen.add(path))  # type: ignore[func-returns-value]
        raise SnapshotError(f"two leaves of the state have the path {show(twice)}")
    return found


def unflatten(structure: Any, leaves: Sequence[Any]) -> Any:
    """The tree of a structure with these leaves."""
    if isinstance(structure, _Structure):
        return structure.unflatten(leaves)
    return sys.modules["jax"].tree_util.tree_unflatten(structure, leaves)


def show(path: str) -> str:
    """A path in a message."""
    return path or "(the state itself)"


# Leaves

_kinds: dict[type, str] = dict(_SCALARS) | {bytes: "bytes"}


def kind(leaf: Any) -> str:
    """What a leaf is: jax, key (a typed PRNG key), numpy, numpy.scalar, bytes, a Python scalar, or "" for none of these."""
    found = _kinds.get(type(leaf))
    return _learn(leaf) if found is None else found


def _learn(leaf: Any) -> str:
    jax, np = sys.modules.get("jax"), sys.modules.get("numpy")
    found = ""
    if jax is not None and isinstance(leaf, jax.core.Tracer):
        raise SnapshotError("a state cannot be saved inside of a function that jax traces; return it, and save what is returned")
    if jax is not None and isinstance(leaf, jax.Array):
        found = "key" if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else "jax"
    elif np is not None and isinstance(leaf, np.ndarray):
        found = "numpy"
    elif np is not None and isinstance(leaf, np.generic):
        found = "numpy.scalar"
    if found and len(_kinds) < 256:
        _kinds[type(leaf)] = found
    return found


def dtype_of(name: str, path: str) -> np.dtype[Any]:
    """The numpy dtype of a name in the pytree section; those that numpy lacks come from ml_dtypes."""
    import numpy as np

    try:
        return np.dtype(name)
    except TypeError:
        pass
    try:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))
    except ImportError as err:
        raise SnapshotError(f"{show(path)} is of dtype {name}, which needs the package ml_dtypes") from err
    except (AttributeError, TypeError) as err:
        raise SnapshotError(f"{show(path)} is of dtype {name}, which this numpy and ml_dtypes do not know") from err


def checked_dtype(dtype: np.dtype[Any], path: str) -> str:
    """The name under which a dtype is stored. Raises SnapshotError for those that have no fixed meaning as bytes."""
    if dtype.kind in "OSUV" and (dtype.kind != "V" or dtype.names is not None or dtype.subdtype is not None or not dtype.name.isidentifier() or dtype.name.startswith("void")):
        raise SnapshotError(f"{show(path)} is of dtype {dtype}, which a snapshot does not hold; store numbers")
    return dtype.newbyteorder("=").name if dtype.kind != "V" else dtype.name


def describe(sharding: Any) -> str | None:
    """A sharding as text that is the same in another process; None for what lies on one device."""
    if sharding is None or len(sharding.device_set) == 1:
        return None
    mesh, spec = getattr(sharding, "mesh", None), getattr(sharding, "spec", None)
    if mesh is None or spec is None:
        return f"{type(sharding).__name__} on {len(sharding.device_set)} devices: {sharding}"
    parts = list(spec)
    while parts and parts[-1] is None:
        parts.pop()
    axes = ",".join(f"{name}={n}" for name, n in mesh.shape.items())
    return f"mesh({axes}) spec({', '.join(map(repr, parts))})"


@dataclasses.dataclass(slots=True)
class Leaf:
    """One leaf as the pytree section has it. A scalar has a value, anything else a section."""

    path: str
    kind: str
    dtype: str = ""
    shape: tuple[int, ...] = ()
    weak: bool = False
    sharding: str | None = None
    impl: str = ""  # of a key
    section: str = ""
    offset: int = 0  # in the section
    nbytes: int = 0
    value: Any = None

    def type(self) -> str:
        """Dtype and shape as they are written in messages: float32[3,4]."""
        if self.kind == "bytes":
            return f"bytes of length {self.nbytes}"
        if not self.dtype:
            return f"a Python {self.kind}" if self.kind != "none" else "None"
        what = f"{self.dtype}[{','.join(map(str, self.shape))}]"
        return f"{what}, a key of {self.impl}" if self.kind == "key" else what

    def entry(self) -> dict[str, Any]:
        """The leaf as JSON holds it."""
        e: dict[str, Any] = {"path": self.path, "kind": self.kind}
        if not self.section:
            return e | ({"value": encode_scalar(self.kind, self.value)} if self.kind != "none" else {})
        if self.kind == "bytes":
            e["length"] = self.nbytes
        else:
            e |= {"dtype": self.dtype, "shape": list(self.shape)}
        for name, value in (("weak", self.weak), ("sharding", self.sharding), ("impl", self.impl), ("offset", self.offset)):
            if value:
                e[name] = value
        return e | {"section": self.section}


def encode_scalar(kind: str, value: Any) -> Any:
    """A Python scalar as JSON holds it to the bit: numbers as text, floats as the hexadecimal digits of their bits."""
    match kind:
        case "float":
            return struct.pack(">d", value).hex()
        case "complex":
            return struct.pack(">dd", value.real, value.imag).hex()
        case "int":
            return hex(value)
    return value


def decode_scalar(kind: str, value: Any) -> Any:
    """The reverse of encode_scalar. Raises ValueError or TypeError."""
    match kind:
        case "float":
            return struct.unpack(">d", bytes.fromhex(value))[0]
        case "complex":
            return complex(*struct.unpack(">dd", bytes.fromhex(value)))
        case "int":
            return int(value, 16)
        case "none":
            return None
    if type(value).__name__ != kind:
        raise TypeError(f"{value!r} is no {kind}")
    return value


# The plan: where everything goes


class Layout:
    """Head and offsets of a container whose sections have these names and lengths."""

    def __init__(self, rows: Sequence[tuple[str, int]]) -> None:
        off = aligned(_HEADER.size + len(rows) * _ROW.size)
        self.offsets: dict[str, int] = {}
        table = bytearray()
        for name, n in rows:
            table += _ROW.pack(name.encode(), off, n)
            self.offsets[name] = off
            off = aligned(off + n)
        self.size = off
        head = _HEADER.pack(b"USPSECT1", VERSION, len(rows), self.size, 0, 0)
        crc = zlib.crc32(table, zlib.crc32(head[:24]))
        self.head = head[:24] + struct.pack("<II", crc, 0) + bytes(table)
        # What is between the sections has to be zero, whatever the memory held before.
        ends = [len(self.head), *(self.offsets[name] + n for name, n in rows)]
        self.gaps = [(end, aligned(end)) for end in ends if end != aligned(end)]


class Plan:
    """The container of all states with these leaves, but for the values of Python scalars."""

    def __init__(self, leaves: Sequence[Leaf]) -> None:
        self.leaves = leaves
        self.stored = [i for i, leaf in enumerate(leaves) if leaf.kind not in _SCALARS.values()]
        self._place()
        self._texts = [json.dumps(leaf.entry()) if leaf.section else "" for leaf in leaves]
        self._rows: list[tuple[str, int]] = []
        for i in self.stored:
            leaf = leaves[i]
            if leaf.section != PACKED:
                self._rows.append((leaf.section, leaf.nbytes))
            elif not self._rows or self._rows[-1][0] != PACKED:
                self._rows.append((PACKED, self._packed))
        self._layout: Layout | None = None
        self._text_len = -1

    def _place(self) -> None:
        """Gives each stored leaf a section of its own, named for its path where that makes a name, or a place in PACKED."""
        largest = sorted(self.stored, key=lambda i: -self.leaves[i].nbytes)
        own = set(largest if len(largest) <= MAX_SECTIONS else largest[: MAX_SECTIONS - 1])
        used = {PYTREE, PACKED}
        self._packed = 0
        # The packed ones come last, so that they lie together.
        self.stored.sort(key=lambda i: (i not in own, i))
        for i in self.stored:
            leaf = self.leaves[i]
            if i not in own:
                leaf.section, leaf.offset = PACKED, self._packed
                self._packed += aligned(leaf.nbytes)
                continue
            name = leaf.path.replace("/", ".")
            if not _BARE.match(name) or name in used:
                name = f"leaf-{i}"
                while name in used:
                    name += "-"
            used.add(name)
            leaf.section = name

    def layout(self, values: Sequence[Any]) -> tuple[Layout, bytes]:
        """The container and its pytree section, with the values of the leaves that are Python scalars."""
        texts = self._texts
        if len(self.stored) != len(self.leaves):
            texts = [
                text or json.dumps(dataclasses.replace(leaf, value=value).entry())
                for text, leaf, value in zip(texts, self.leaves, values, strict=True)
            ]
        text = f'{{"version":{VERSION},"leaves":[{",".join(texts)}]}}'.encode()
        if self._layout is None or len(text) != self._text_len:
            self._text_len, self._layout = len(text), Layout([(PYTREE, len(text)), *self._rows])
        return self._layout, text

    def fill(self, dst: memoryview, layout: Layout, text: bytes, put: Callable[[int, memoryview], None]) -> None:
        """Writes the container; put(i, view) writes the bytes of leaf i into a view of just their length."""
        dst[: len(layout.head)] = layout.head
        for end, begin in layout.gaps:
            dst[end:begin] = bytes(begin - end)
        at = layout.offsets[PYTREE]
        dst[at : at + len(text)] = text
        for i in self.stored:
            leaf = self.leaves[i]
            at = layout.offsets[leaf.section] + leaf.offset
            put(i, dst[at : at + leaf.nbytes])
            if leaf.section == PACKED:
                dst[at + leaf.nbytes : at + aligned(leaf.nbytes)] = bytes(aligned(leaf.nbytes) - leaf.nbytes)


# Reading


def sections(container: memoryview) -> dict[str, memoryview]:
    """The sections of a container as views. Raises SnapshotError if it is none."""

    def bad(why: str) -> SnapshotError:
        return SnapshotError(f"what was loaded is no container of sections: {why}")

    if len(container) < _HEADER.size or container[:8] != b"USPSECT1":
        raise bad("it does not begin like one")
    _, version, count, total, crc, zero = _HEADER.unpack_from(container)
    if version != VERSION:
        raise bad(f"version {version}; use a newer usp package")
    end = _HEADER.size + count * _ROW.size
    if total != len(container) or end > total:
        raise bad(f"{count} sections in {total} bytes, of which {len(container)} are there")
    if zlib.crc32(container[_HEADER.size : end], zlib.crc32(container[:24])) != crc or zero:
        raise bad("the checksum of its table differs")
    found = {}
    for i in range(count):
        name, off, n = _ROW.unpack_from(container, _HEADER.size + i * _ROW.size)
        if off > total or n > total - off:
            raise bad(f"section {i} does not fit")
        found[name.rstrip(b"\0").decode("ascii", "replace")] = container[off : off + n]
    return found


def leaves(text: bytes | memoryview) -> list[Leaf]:
    """The leaves that a pytree section describes. Raises SnapshotError if it is of a newer version or malformed."""
    try:
        doc = json.loads(bytes(text))
        if doc["version"] != VERSION:
            raise SnapshotError(f"the state is of format version {doc['version']}; use a newer usp package")
        return [_leaf(e) for e in doc["leaves"]]
    except (KeyError, TypeError, ValueError) as err:
        raise SnapshotError(f"the section {PYTREE} of the snapshot is malformed: {type(err).__name__}: {err}") from err


def _leaf(e: Mapping[str, Any]) -> Leaf:
    leaf = Leaf(path=e["path"], kind=e["kind"])
    if leaf.kind in _SCALARS.values():
        leaf.value = decode_scalar(leaf.kind, e.get("value"))
        return leaf
    leaf.section, leaf.offset = e["section"], e.get("offset", 0)
    leaf.sharding, leaf.impl, leaf.weak = e.get("sharding"), e.get("impl", ""), e.get("weak", False)
    if leaf.kind == "bytes":
        leaf.nbytes = e["length"]
    elif leaf.kind in ("jax", "key", "numpy", "numpy.scalar"):
        leaf.dtype, leaf.shape = e["dtype"], tuple(e["shape"])
        if any(type(n) is not int or n < 0 for n in leaf.shape):
            raise ValueError(f"shape {e['shape']} of {show(leaf.path)}")
        leaf.nbytes = math.prod(leaf.shape) * dtype_of(leaf.dtype, leaf.path).itemsize
    else:
        raise ValueError(f"a leaf of kind {leaf.kind!r}")
    if type(leaf.offset) is not int or type(leaf.nbytes) is not int or leaf.offset < 0 or leaf.nbytes < 0:
        raise ValueError(f"place of {show(leaf.path)}")
    return leaf


def value(leaf: Leaf, found: Mapping[str, memoryview]) -> Any:
    """A leaf's value: a Python scalar, bytes, or an array that is a view of the section."""
    if not leaf.section:
        return leaf.value
    data = found.get(leaf.section)
    whole = leaf.section != PACKED
    if data is None or leaf.offset + leaf.nbytes > len(data) or whole and (leaf.offset or leaf.nbytes != len(data)):
        have = "there is none" if data is None else f"it has {len(data)}"
        raise SnapshotError(f"{show(leaf.path)} takes {leaf.nbytes} bytes at {leaf.offset} of section {leaf.section}: {have}")
    data = data[leaf.offset : leaf.offset + leaf.nbytes]
    if leaf.kind == "bytes":
        return bytes(data)
    import numpy as np

    dtype = dtype_of(leaf.dtype, leaf.path)
    array = np.frombuffer(data, dtype=np.uint8).view(dtype) if leaf.nbytes else np.empty(0, dtype)
    array = array.reshape(leaf.shape)
    return array[()] if leaf.kind == "numpy.scalar" else array
