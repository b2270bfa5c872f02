"""Snapshots of pytrees: saving is `Saver`, restoring is `restore`.

What is restored was verified: `usp snapshot load` checks every byte of the file, and the file against the digest log of its
run, before it says that it is done; only then is anything of it looked at here.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import subprocess
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from . import _pytree as pt
from . import _recorder
from ._errors import SnapshotError, Warning
from ._saver import Saver, size

__all__ = ["Saver", "all_steps", "latest_step", "restore", "size"]

NOT_FOUND, WRONG_KEY, FAILED = 10, 12, 20  # exit codes of usp


def restore(
    run: Any,
    like: Any = None,
    step: int | None = None,
    paths: Sequence[str] | None = None,
    *,
    reshard: bool = False,
    identity: str | os.PathLike[str] | None = None,
) -> tuple[Any, int]:
    """Returns the state of a run's newest snapshot that verifies, and its step.

    run: a run id, the path of a run directory, "latest", or a Run.
    like: a pytree like the one that was saved, of arrays or of jax.ShapeDtypeStruct: the state is built like it, jax
        arrays on the devices and with the sharding that its leaves have. None: nested dicts by path, whose arrays are
        of numpy and share one piece of memory, which is there as long as one of them is.
    step: of the snapshot; None: the newest. Then one that is damaged is passed over, with a warning.
    paths: restore only these leaves, and all below them, such as ["params/dense"]. With like, the others are like's.
        The whole snapshot is verified all the same, but only they are held in memory.
    reshard: allows like's sharding to be another than the one saved.
    identity: file of age secret keys for an encrypted snapshot; default snapshot.identity_file.

    Raises SnapshotError if there is no such snapshot, if none verifies, or if like does not fit what was saved: it
    names the path, what like has and what the snapshot has.
    """
    load = _Load(run, step, identity)
    if paths is None:
        container = load([])
        found = pt.sections(container)
        leaves = _described(found)
    else:
        # The first pass says where the leaves are; the second one holds no more than them, however large the state is.
        leaves = _under(_described(pt.sections(load([pt.PYTREE]))), paths)
        load.step = load.loaded
        found = pt.sections(load(sorted({leaf.section for leaf in leaves if leaf.section}))) if any(leaf.section for leaf in leaves) else {}
    if like is None:
        return _nested(leaves, found), load.loaded
    return _like(like, leaves, found, paths, reshard), load.loaded


def latest_step(run: Any) -> int | None:
    """The step of the newest snapshot of a run that its log vouches for; None if there is none, or no such run."""
    return max(all_steps(run), default=None)


def all_steps(run: Any) -> list[int]:
    """The steps of the snapshots of a run that its log vouches for, ascending. They are not read; restore does that.

    run: a run id, the path of a run directory, "latest", or a Run. Without such a run the list is empty.
    """
    done = _usp(["snapshot", "ls", _name(run), "--json"])
    if done.returncode == NOT_FOUND:
        return []
    if done.returncode:
        raise _failure(run, done)
    return sorted({row["step"] for row in json.loads(done.stdout) if row["current"] and "error" not in row})


# Loading


def _name(run: Any) -> str:
    path: Any = getattr(run, "dir", run)
    return os.fspath(path)


def _usp(args: Sequence[str], *fds: int) -> subprocess.CompletedProcess[bytes]:
    program = _recorder.find()
    if program is None:
        raise SnapshotError("a snapshot is verified and read by the usp program, and there is none: set USP_BIN, or put usp into PATH")
    return subprocess.run([program, *args], stdin=subprocess.DEVNULL, capture_output=True, pass_fds=fds)


def _failure(run: Any, done: subprocess.CompletedProcess[bytes]) -> SnapshotError:
    said = [_message(line) for line in done.stderr.decode(errors="replace").splitlines() if line]
    why = "; ".join(said) or f"usp ended with code {done.returncode}"
    return SnapshotError(f"run {_name(run)}: {why}")


def _message(line: str) -> str:
    """What a line on usp's standard error says: the last one of a command that failed is JSON."""
    if line.startswith("{"):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return str(json.loads(line)["message"])
    return line.removeprefix("usp: ").removeprefix("warning: ")


class _Load:
    """Runs usp snapshot load; afterwards `loaded` is the step."""

    def __init__(self, run: Any, step: int | None, identity: str | os.PathLike[str] | None) -> None:
        self.run, self.step, self.loaded = run, step, -1
        self._options = [] if identity is None else ["--identity", os.fspath(identity)]

    def __call__(self, sections: Iterable[str]) -> memoryview:
        """Returns the container of these sections, or of all, in memory that is this process's alone."""
        args = ["snapshot", "load", _name(self.run), "--json", *self._options]
        args += [f"--section={name}" for name in sections]
        if self.step is not None:
            args += ["--step", str(self.step)]
        fd = _memory()
        try:
            # The program writes into the memory that the arrays will be views of: nothing is copied here.
            done = _usp([*args, "--to", f"/dev/fd/{fd}"], fd)
            if done.returncode:
                raise _failure(self.run, done)
            report = json.loads(done.stdout)
            for bad in report.get("rejected", ()):
                warnings.warn(
                    f"run {_name(self.run)}: the snapshot of step {bad['step']} was passed over: {bad['reason']}", Warning, stacklevel=4
                )
            flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
            whole = memoryview(mmap.mmap(fd, 0, flags=flags))
        finally:
            os.close(fd)
        if len(whole) != report["size"]:
            raise SnapshotError(f"run {_name(self.run)}: usp wrote {len(whole)} bytes of {report['size']}")
        self.loaded = report["step"]
        return whole


def _memory() -> int:
    """A file without a name, in memory if the system has such."""
    with contextlib.suppress(AttributeError, OSError):
        return os.memfd_create("usp-restore", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _described(found: Mapping[str, memoryview]) -> list[pt.Leaf]:
    if pt.PYTREE not in found:
        raise SnapshotError(
            f"the snapshot was not saved by this package: it has the sections {', '.join(sorted(found))}, and none named {pt.PYTREE}"
        )
    return pt.leaves(found[pt.PYTREE])


def _under(leaves: Sequence[pt.Leaf], paths: Sequence[str]) -> list[pt.Leaf]:
    """The leaves at or below some paths. Raises SnapshotError for a path without any."""
    if isinstance(paths, str):
        raise SnapshotError(f"paths is {paths!r}: want a list of paths, [{paths!r}]")
    chosen = [_chosen(leaf.path, paths) for leaf in leaves]
    for path in paths:
        if not any(_chosen(leaf.path, [path]) for leaf in leaves):
            near = ", ".join(pt.show(leaf.path) for leaf in leaves[:8])
            raise SnapshotError(f"the snapshot has no leaf at or below {pt.show(path)}; it has {near}{', …' if len(leaves) > 8 else ''}")
    return [leaf for leaf, wanted in zip(leaves, chosen, strict=True) if wanted]


def _chosen(path: str, paths: Sequence[str]) -> bool:
    return any(p == "" or path == p or path.startswith(p + "/") for p in paths)


# Building


def _nested(leaves: Sequence[pt.Leaf], found: Mapping[str, memoryview]) -> Any:
    root: dict[str, Any] = {}
    for leaf in leaves:
        keys = pt.split(leaf.path)
        value = pt.value(leaf, found)
        if leaf.kind == "key":
            value = _key(leaf, value, None)
        if not leaf.path and len(leaves) == 1:
            return value
        node = root
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = value
    return root


def _like(like: Any, leaves: Sequence[pt.Leaf], found: Mapping[str, memoryview], paths: Sequence[str] | None, reshard: bool) -> Any:
    flat, structure = pt.flatten(like)
    names = pt.paths(like, structure)
    wanted = set(names) if paths is None else {name for name in names if _chosen(name, paths)}
    saved = {leaf.path: leaf for leaf in leaves}
    _same_paths(wanted, saved)
    out = list(flat)
    device: list[tuple[int, pt.Leaf, Any, Any]] = []
    for i, (name, want) in enumerate(zip(names, flat, strict=True)):
        if name not in wanted:
            continue
        leaf = saved[name]
        kind = _check(want, leaf, reshard)
        value = pt.value(leaf, found)
        if kind in ("jax", "key"):
            device.append((i, leaf, value, getattr(want, "sharding", None)))
        elif kind == "numpy.scalar":
            out[i] = value[()] if leaf.kind == "numpy" else value
        else:
            out[i] = value
    for (i, *_), array in zip(device, _on_device(device), strict=True):
        out[i] = array
    return pt.unflatten(structure, out)


def _same_paths(wanted: set[str], saved: Mapping[str, pt.Leaf]) -> None:
    missing, extra = sorted(wanted - saved.keys()), sorted(saved.keys() - wanted)
    if missing or extra:
        parts = []
        for what, names in (("like has, and the snapshot has not: ", missing), ("the snapshot has, and like has not: ", extra)):
            if names:
                more = f" and {len(names) - 4} more" if len(names) > 4 else ""
                parts.append(what + ", ".join(map(pt.show, names[:4])) + more)
        raise SnapshotError(f"like does not fit the snapshot: {'; '.join(parts)}")


def _check(want: Any, leaf: pt.Leaf, reshard: bool) -> str:
    """What a leaf is to become. Raises SnapshotError if like's has another type, shape or sharding."""
    kind = pt.kind(want)
    where = f"{pt.show(leaf.path)}: like has "
    if not kind and hasattr(want, "shape") and hasattr(want, "dtype"):  # jax.ShapeDtypeStruct
        kind = "jax"
    if kind == "jax" and leaf.kind == "key" or kind == "key":
        import jax

        if not jax.dtypes.issubdtype(want.dtype, jax.dtypes.prng_key) or leaf.kind != "key":
            raise SnapshotError(f"{where}{want.dtype}{list(want.shape)}, the snapshot {leaf.type()}")
        impl = str(jax.random.key_impl(want)) if pt.kind(want) == "key" else leaf.impl
        if impl != leaf.impl or tuple(want.shape) != leaf.shape[: len(leaf.shape) - 1]:
            raise SnapshotError(f"{where}a key of {impl} and shape {list(want.shape)}, the snapshot {leaf.type()}")
        return "key"
    if kind not in ("jax", "numpy", "numpy.scalar"):
        if kind != leaf.kind:
            have = {"": f"a {type(want).__name__}", "none": "None", "bytes": "bytes"}.get(kind, f"a Python {kind}")
            raise SnapshotError(f"{where}{have}, the snapshot {leaf.type()}")
        return kind
    have = pt.Leaf("", kind, pt.checked_dtype(want.dtype, leaf.path), tuple(want.shape))
    if leaf.kind not in ("jax", "numpy", "numpy.scalar") or (have.dtype, have.shape) != (leaf.dtype, leaf.shape):
        raise SnapshotError(f"{where}{have.type()}, the snapshot {leaf.type()}")
    sharding = pt.describe(getattr(want, "sharding", None))
    if kind == "jax" and sharding != leaf.sharding and not reshard:
        raise SnapshotError(
            f"{where}{sharding or 'it on one device'}, the snapshot {leaf.sharding or 'it on one device'}; pass reshard=True to restore it all the same"
        )
    return kind


def _on_device(device: Sequence[tuple[int, pt.Leaf, Any, Any]]) -> list[Any]:
    """The device arrays of host arrays, all put there together."""
    if not device:
        return []
    import jax

    arrays = jax.device_put([value for _, leaf, value, _ in device], [_data_sharding(leaf, s) for _, leaf, _, s in device])
    return [_key(leaf, array, s) if leaf.kind == "key" else _weak(leaf, value, array) for (_, leaf, value, s), array in zip(device, arrays, strict=True)]


def _data_sharding(leaf: pt.Leaf, sharding: Any) -> Any:
    """Where the data go: for a key, which has an axis less than its data, where it can be told."""
    return sharding if leaf.kind != "key" or sharding is None or len(sharding.device_set) == 1 else None


def _key(leaf: pt.Leaf, data: Any, sharding: Any) -> Any:
    import jax

    key = jax.random.wrap_key_data(jax.numpy.asarray(data), impl=leaf.impl)
    return key if sharding is None or len(sharding.device_set) == 1 else jax.device_put(key, sharding)


def _weak(leaf: pt.Leaf, value: Any, array: Any) -> Any:
    """A scalar of weak type as such again: a function that was compiled for it is not compiled anew."""
    if not leaf.weak or leaf.shape:
        return array
    import jax

    weak = jax.device_put(jax.numpy.asarray(value.item()), array.sharding)
    return weak if weak.dtype == array.dtype and weak.weak_type else array
