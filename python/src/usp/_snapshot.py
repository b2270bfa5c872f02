"""Snapshots of pytrees: saving is `Saver`, restoring is `restore`.

What is restored was verified: the SHA-256 of all bytes of the file is the one in the digest log of its run. A state
that is stored as it is, is read and hashed here, against the sum that usp has from the log; any other one, and one that
does not verify, goes through `usp snapshot load`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import FileIO
from typing import Any

from . import _pytree as pt
from . import _recorder
from ._errors import SnapshotError, Warning, warn
from ._saver import Saver, size

__all__ = ["Saver", "all_steps", "latest_step", "restore", "size"]

NOT_FOUND = 10  # exit code of usp
STEP = 1 << 20  # bytes that are read and hashed together


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
    if isinstance(paths, str):
        raise SnapshotError(f"paths is {paths!r}: want a list of paths, [{paths!r}]")
    if direct := _direct(run, step, paths):
        leaves, found, load.loaded = direct
    elif paths is None:
        found = pt.sections(load([]))
        leaves = _described(found)
    else:
        # The first pass says where the leaves are; the second one holds no more than them, however large the state is.
        leaves = _under(_described(pt.sections(load([pt.PYTREE]))), paths)
        load.step = load.loaded
        found = (
            pt.sections(load(sorted({leaf.section for leaf in leaves if leaf.section})))
            if any(leaf.section for leaf in leaves)
            else {}
        )
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
    return sorted({row["step"] for row in json.loads(done.stdout) or () if row["current"] and "error" not in row})


# Loading


def _name(run: Any) -> str:
    return str(os.fspath(getattr(run, "dir", run)))


def _usp(args: Sequence[str], *fds: int) -> subprocess.CompletedProcess[bytes]:
    program = _recorder.find()
    if program is None:
        raise SnapshotError(
            "a snapshot is verified and read by the usp program, and there is none: set USP_BIN, or put usp into PATH"
        )
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
                warn(
                    f"run {_name(self.run)}: the snapshot of step {bad['step']} was passed over: {bad['reason']}",
                    Warning,
                )
            flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
            whole = memoryview(mmap.mmap(fd, 0, flags=flags))
        finally:
            os.close(fd)
        if len(whole) != report["size"]:
            raise SnapshotError(f"run {_name(self.run)}: usp wrote {len(whole)} bytes of {report['size']}")
        self.loaded = report["step"]
        return whole


def _direct(
    run: Any, step: int | None, paths: Sequence[str] | None
) -> tuple[list[pt.Leaf], dict[str, memoryview], int] | None:
    """Reads a snapshot that is stored as it is in one pass; returns leaves, sections and step.

    It is verified by the SHA-256 of all its bytes, which usp reads from the digest log. That costs half of having usp
    copy it. None: it is compressed, encrypted, kept in parts elsewhere or damaged; then `usp snapshot load` is to read
    it, or to say what is wrong and to find another one.
    """
    done = _usp(["snapshot", "show", _name(run), "--json", *([] if step is None else [str(step)])])
    row: dict[str, Any] = json.loads(done.stdout) if done.returncode == 0 else {"current": False}
    rows: list[dict[str, Any]] = row.get("sections", [])
    whole = all(r["stored"] == r["size"] and "kept_in" not in r for r in rows)
    if not row["current"] or row.get("encrypted") or not whole or not rows or rows[0]["name"] != pt.PYTREE:
        return None
    try:
        with open(row["path"], "rb", buffering=0) as file, ThreadPoolExecutor(1) as beside:
            if os.fstat(file.fileno()).st_size != row["size"]:
                return None
            reader = _Reader(file, beside)
            leaves, found = reader.read(rows, row["size"], paths)
    except (OSError, EOFError):
        return None
    if reader.sum.hexdigest() != row["sha256"]:
        return None
    if isinstance(leaves, SnapshotError):
        raise leaves
    return leaves, found, row["step"]


class _Reader:
    """Reads a file from front to back, and has its SHA-256 computed meanwhile."""

    def __init__(self, file: FileIO, beside: ThreadPoolExecutor) -> None:
        self.sum = hashlib.sha256()
        self._file, self._beside = file, beside
        self._at = 0
        self._scratch = [memoryview(bytearray(STEP)) for _ in range(2)]
        self._lent: list[Future[None] | None] = [None, None]

    def read(
        self, rows: Sequence[Mapping[str, Any]], size: int, paths: Sequence[str] | None
    ) -> tuple[list[pt.Leaf] | SnapshotError, dict[str, memoryview]]:
        """Reads all of it. Returns the leaves that are wanted, or what is wrong with that, and their sections."""
        found: dict[str, memoryview] = {}
        leaves: list[pt.Leaf] | SnapshotError = []
        wanted = {pt.PYTREE}
        all_of_it = _anonymous(size) if paths is None else None
        for row in rows:
            self._pass_over(row["offset"])
            name, n = row["name"], row["size"]
            if all_of_it is None and name not in wanted:
                continue
            memory = _anonymous(n) if all_of_it is None else all_of_it[row["offset"] : row["offset"] + n]
            found[name] = self._into(memory)
            if name == pt.PYTREE:
                # It is not verified yet, and neither is what follows from it; nothing of it is used before it is.
                try:
                    leaves = _described(found) if paths is None else _under(_described(found), paths)
                    wanted = {leaf.section for leaf in leaves}
                except SnapshotError as err:
                    leaves, wanted = err, set()
        self._pass_over(size)
        for lent in self._lent:
            if lent is not None:
                lent.result()
        return leaves, found

    def _into(self, memory: memoryview) -> memoryview:
        for at in range(0, len(memory), STEP):
            self._piece(memory[at : at + STEP])
        return memory

    def _piece(self, memory: memoryview) -> None:
        got = 0
        while got < len(memory):
            n = self._file.readinto(memory[got:])
            if not n:
                raise EOFError
            got += n
        self._at += got
        # One thread, so the pieces are hashed in order, and the last one is behind all others.
        self._lent[0] = self._beside.submit(self.sum.update, memory)

    def _pass_over(self, end: int) -> None:
        """Reads up to a place what is not kept."""
        while self._at < end:
            self._scratch.reverse()
            self._lent.reverse()
            if self._lent[0] is not None:
                self._lent[0].result()  # the buffer is free again
            self._piece(self._scratch[0][: end - self._at])


def _anonymous(n: int) -> memoryview:
    """Memory of this process's own, in pages of the size that the system prefers.

    It is not asked for large ones: they save little beside the hash, and a virtual machine that returns unused memory
    to its host returns just these, so that to have them again may take longer than everything else here.
    """
    return memoryview(mmap.mmap(-1, max(n, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))[:n]


def _memory() -> int:
    """A file without a name, in memory if the system has such."""
    with contextlib.suppress(AttributeError, OSError):
        return os.memfd_create("usp-restore", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _described(found: Mapping[str, memoryview]) -> list[pt.Leaf]:
    if pt.PYTREE not in found:
        raise SnapshotError(
            f"the snapshot was not saved by this package: it has the sections {', '.join(sorted(found))}, "
            f"and none named {pt.PYTREE}"
        )
    return pt.leaves(found[pt.PYTREE])


def _under(leaves: Sequence[pt.Leaf], paths: Sequence[str]) -> list[pt.Leaf]:
    """The leaves at or below some paths. Raises SnapshotError for a path without any."""
    chosen = [_chosen(leaf.path, paths) for leaf in leaves]
    for path in paths:
        if not any(_chosen(leaf.path, [path]) for leaf in leaves):
            near = ", ".join([pt.show(leaf.path) for leaf in leaves[:8]] + ["…"] * (len(leaves) > 8))
            raise SnapshotError(f"the snapshot has no leaf at or below {pt.show(path)}; it has {near}")
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


def _like(
    like: Any, leaves: Sequence[pt.Leaf], found: Mapping[str, memoryview], paths: Sequence[str] | None, reshard: bool
) -> Any:
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
        for what, names in (
            ("like has, and the snapshot has not: ", missing),
            ("the snapshot has, and like has not: ", extra),
        ):
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
    if kind in ("jax", "key") and (leaf.kind == "key" or pt.is_key(want)):
        import jax

        if leaf.kind != "key" or not pt.is_key(want):
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
    ours = pt.Leaf("", kind, pt.checked_dtype(want.dtype, leaf.path), tuple(want.shape))
    if leaf.kind not in ("jax", "numpy", "numpy.scalar") or (ours.dtype, ours.shape) != (leaf.dtype, leaf.shape):
        raise SnapshotError(f"{where}{ours.type()}, the snapshot {leaf.type()}")
    sharding = pt.describe(getattr(want, "sharding", None))
    if kind == "jax" and sharding != leaf.sharding and not reshard:
        raise SnapshotError(
            f"{where}{sharding or 'it on one device'}, the snapshot {leaf.sharding or 'it on one device'}; "
            "pass reshard=True to restore it all the same"
        )
    return kind


def _on_device(device: Sequence[tuple[int, pt.Leaf, Any, Any]]) -> list[Any]:
    """The device arrays of host arrays, all put there together."""
    if not device:
        return []
    import jax

    arrays = jax.device_put(
        [value for _, leaf, value, _ in device], [_data_sharding(leaf, s) for _, leaf, _, s in device]
    )
    return [
        _key(leaf, array, s) if leaf.kind == "key" else _weak(leaf, value, array)
        for (_, leaf, value, s), array in zip(device, arrays, strict=True)
    ]


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
