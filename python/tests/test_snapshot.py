"""States are restored as they were saved, verified, or not at all."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import usp
from runs import closed, program, until, verified
from runs import usp as command
from states import FIELDS, arrays, donate, equal, leaf_equal, pending
from usp import SnapshotError, _snapshot
from usp import _pytree as pt


@dataclasses.dataclass
class Pair:
    """A dataclass in a state."""

    left: Any
    right: Any


jax.tree_util.register_dataclass(Pair)


def rich() -> dict[str, Any]:
    """A state of many kinds."""
    params = {
        "dense": {"kernel": jnp.arange(12.0).reshape(3, 4), "bias": jnp.ones(4, jnp.bfloat16)},
        "empty": jnp.zeros((0, 3)),
    }
    return {
        "params": params, "opt": optax.adam(1e-3).init(params), "pair": Pair(1, (2.5, [None])),
        "key": jax.random.key(3), "keys": jax.random.split(jax.random.key(4), 3), "np": np.arange(5, dtype="u1"),
        "g": np.float32(2), "b": b"\x00\xff", "s": "é",
        "weak": jnp.asarray(3), "z": 1j, "big": 10**40,
    }  # fmt: skip


def record(states: dict[int, Any], **options: Any) -> usp.Run:
    """Records a run with a snapshot of each state."""
    with usp.Run(
        fields=FIELDS, state=next(iter(states.values())), save_interval_steps=1, staging_areas=4, **options
    ) as run:
        for n, (step, state) in enumerate(states.items()):
            run.emit(step, {"loss": 0.5})
            assert run.snapshot(step, state)
            until(lambda n=n: run._session.ring.consumer().snapshots == n + 1)
    return run


@pytest.fixture
def recorded(usp_bin: str, ring_dir: Path, run_dir: Path) -> usp.Run:
    """A run with one snapshot, of the rich state."""
    return record({7: rich()})


def test_restore_like(recorded: usp.Run) -> None:
    verified(recorded.dir)
    for run in (recorded, recorded.dir, recorded.id, "latest"):
        state, step = usp.restore(
            run, like=jax.tree.map(lambda a: a * 0 if hasattr(a, "shape") and pt.kind(a) != "key" else a, rich())
        )
        assert step == 7 and equal(state, rich())
    # It is an ordinary state: it can be written to, donated, computed with.
    state["np"][0] = 9
    jax.block_until_ready(donate(state["params"]))
    assert jax.random.uniform(state["key"]) == jax.random.uniform(jax.random.key(3))
    assert usp.latest_step(recorded) == 7 and usp.all_steps("latest") == [7] and recorded.latest_step() == 7


def test_restore_shapes(recorded: usp.Run) -> None:
    like = jax.eval_shape(lambda: rich()["params"])
    state, _ = usp.restore(recorded, like={**{k: v for k, v in rich().items() if k != "params"}, "params": like})
    assert equal(state, rich())


def test_restore_nested(recorded: usp.Run) -> None:
    state, step = usp.restore(recorded)
    assert step == 7 and state["pair"] == {"left": 1, "right": {"0": 2.5, "1": {"0": None}}}
    assert (
        isinstance(state["params"]["dense"]["kernel"], np.ndarray)
        and state["params"]["dense"]["bias"].dtype == jnp.bfloat16
    )
    assert (state["params"]["dense"]["kernel"] == np.arange(12.0).reshape(3, 4)).all() and state["params"][
        "empty"
    ].shape == (0, 3)
    assert state["big"] == 10**40 and state["b"] == b"\x00\xff" and leaf_equal(state["keys"], rich()["keys"])


def test_restore_paths(recorded: usp.Run) -> None:
    part, _ = usp.restore(recorded, paths=["params/dense/bias", "pair/left"])
    assert part["pair"] == {"left": 1} and list(part["params"]["dense"]) == ["bias"]
    like = rich() | {"params": jax.tree.map(lambda a: a * 0 + 5, rich()["params"]), "np": np.zeros(1)}
    state, _ = usp.restore(recorded, like=like, paths=["params/dense"])
    assert equal(state["params"]["dense"], rich()["params"]["dense"]) and state["np"] is like["np"]
    only, _ = usp.restore(recorded, paths=["big"])
    assert only == {"big": 10**40}
    with pytest.raises(SnapshotError, match="no leaf at or below nothing"):
        usp.restore(recorded, paths=["nothing"])
    with pytest.raises(SnapshotError, match="want a list of paths"):
        usp.restore(recorded, paths="params")


@pytest.mark.parametrize(("change", "says"), [
    ({"np": np.zeros(6, "u1")}, r"^np: like has uint8\[6\], the snapshot uint8\[5\]$"),
    ({"np": np.zeros(5, "i1")}, r"^np: like has int8\[5\], the snapshot uint8\[5\]$"),
    ({"g": 2.0}, r"^g: like has a Python float, the snapshot float32\[\]$"),
    ({"big": 1.5}, r"^big: like has a Python float, the snapshot a Python int$"),
    ({"s": None}, r"^s: like has None, the snapshot a Python str$"),
    ({"key": jnp.zeros(2, "u4")}, r"^key: like has uint32\[2\], the snapshot uint32\[2\], a key of threefry2x32$"),
    ({"key": jax.random.key(0, impl="rbg")}, r"^key: like has a key of rbg and shape \[\], the snapshot .*threefry"),
    ({"weak": jax.random.key(0)}, r"^weak: like has key<fry>\[\], the snapshot int32\[\]$"),
    ({"weak": jax.eval_shape(lambda: jax.random.key(0))}, r"^weak: like has key<fry>\[\], the snapshot int32\[\]$"),
    ({"key": jax.eval_shape(lambda: jax.random.split(jax.random.key(0)))}, r"^key: like has a key of threefry2x32 and"),
    ({"more": 1}, r"like has, and the snapshot has not: more$"),
    ({"z": {"x": 1}}, r"like has, and the snapshot has not: z/x; the snapshot has, and like has not: z$"),
])  # fmt: skip
def test_like_that_does_not_fit(recorded: usp.Run, change: dict[str, Any], says: str) -> None:
    with pytest.raises(SnapshotError, match=says):
        usp.restore(recorded, like=rich() | change)


def test_steps_and_retention(usp_bin: str, ring_dir: Path, run_dir: Path) -> None:
    run = record({step: {"n": np.full(3, step)} for step in (2, 4, 6, 8)}, max_to_keep=3)
    assert usp.all_steps(run) == [4, 6, 8] and usp.latest_step(run.dir) == 8
    state, step = usp.restore(run, step=6)
    assert step == 6 and (state["n"] == 6).all()
    with pytest.raises(SnapshotError, match="has no snapshot of step 2"):
        usp.restore(run, step=2)
    other = record({9: {"n": np.full(3, 9)}})
    name = f"snapshots/{9:020}-0000.snap"
    (Path(run.dir) / name).write_bytes((Path(other.dir) / name).read_bytes())
    assert usp.all_steps(run) == [4, 6, 8], "the log does not vouch for step 9"
    assert usp.restore(run)[1] == 8
    assert usp.latest_step("nowhere") is None and usp.all_steps(run_dir / "none") == []
    with pytest.raises(SnapshotError, match="nowhere"):
        usp.restore("nowhere")


def test_no_snapshot(usp_bin: str, ring_dir: Path, run_dir: Path) -> None:
    with usp.Run(fields=FIELDS, staging_areas=0) as run:
        run.emit(1, {"loss": 1.0})
    assert usp.all_steps(run) == [] and run.latest_step() is None
    with pytest.raises(SnapshotError, match="the run has no snapshot that its log vouches for"):
        usp.restore(run, like={"n": 1})


def damage(run: usp.Run, step: int, at: int) -> None:
    """Flips a byte of a snapshot."""
    path = Path(run.dir) / "snapshots" / f"{step:020}-0000.snap"
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


def test_damaged(usp_bin: str, ring_dir: Path, run_dir: Path) -> None:
    run = record({step: {"n": np.full(300, step)} for step in (1, 2)})
    damage(run, 2, 700)
    with pytest.warns(usp.Warning, match="snapshot of step 2 was passed over: .*damaged at byte"):
        state, step = usp.restore(run)
    assert step == 1 and (state["n"] == 1).all()
    with pytest.raises(
        SnapshotError, match="step 2 not loaded: .*damaged at byte .*; no snapshot of the run can be loaded"
    ):
        usp.restore(run, step=2)
    damage(run, 1, 700)
    with pytest.raises(SnapshotError, match="no snapshot of the run can be loaded"):
        usp.restore(run, like={"n": np.zeros(300, "i8")})


@pytest.mark.parametrize("way", ["plain", "zstd", "kept", "copied"])
def test_ways_of_reading(
    way: str, usp_bin: str, ring_dir: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is stored as it is, is read here, anything else by the program; both give the same."""
    monkeypatch.setenv("USP_SNAPSHOT_COMPRESSION", "zstd" if way == "zstd" else "none")
    monkeypatch.setenv("USP_SNAPSHOT_REUSE", "3" if way == "kept" else "0")
    large = np.arange(3 << 18, dtype="f8")
    # As large as the other, so that where that lies in the older file there is something in the newer one too.
    changed = np.ones(1 << 20)
    run = record({1: rich() | {"large": large, "np": changed * 2}, 2: rich() | {"large": large, "np": changed}})
    assert (_snapshot._direct(run, None, None) is not None) == (way in ("plain", "copied"))
    if way == "copied":
        monkeypatch.setattr(_snapshot, "_direct", lambda *_: None)
    state, step = usp.restore(run, like=rich() | {"large": large, "np": changed * 0})
    assert step == 2 and equal(state, rich() | {"large": large, "np": changed})
    part, step = usp.restore(run, step=1, paths=["np", "params", "big"])
    assert step == 1 and sorted(part) == ["big", "np", "params"] and (part["np"] == 2).all()
    part, _ = usp.restore(run, paths=["large"])
    assert (part["large"] == large).all()
    part["large"][0] = -1  # memory of its own
    assert usp.restore(run, paths=["large"])[0]["large"][0] == 0
    with pytest.raises(SnapshotError, match="no leaf at or below nothing"):
        usp.restore(run, paths=["nothing"])


def test_every_byte_is_verified(usp_bin: str, ring_dir: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = record({1: {"n": np.arange(9), "m": b"xyz"}})
    said = _snapshot._usp(["snapshot", "show", run.dir, "--json"])
    monkeypatch.setattr(_snapshot, "_usp", lambda *_: said)
    assert _snapshot._direct(run, None, None) is not None
    path = Path(run.dir) / "snapshots" / f"{1:020}-0000.snap"
    good = path.read_bytes()
    path.chmod(0o600)
    for i in range(len(good)):
        path.write_bytes(good[:i] + bytes([good[i] ^ 1]) + good[i + 1 :])
        assert _snapshot._direct(run, None, None) is None, f"byte {i}"
        assert _snapshot._direct(run, None, ["m"]) is None, f"byte {i}, of a part"
    for cut in (0, 100, len(good) - 1):
        path.write_bytes(good[:cut])
        assert _snapshot._direct(run, None, None) is None
    path.write_bytes(good + b"x")
    assert _snapshot._direct(run, None, None) is None


def test_not_a_pytree(usp_bin: str, run_dir: Path, ring_dir: Path) -> None:
    command("run", "-q", "example:nile")
    with pytest.raises(SnapshotError, match="not saved by this package: it has the sections .*none named pytree"):
        usp.restore("latest")


def test_without_the_program(recorded: usp.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("USP_BIN")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SnapshotError, match="set USP_BIN"):
        usp.restore(recorded)


def test_after_device_records(usp_bin: str, ring_dir: Path, run_dir: Path) -> None:
    """A snapshot follows the records that were emitted before it, also those that are still on the device."""
    with usp.Run(fields=FIELDS, state=arrays(0), save_interval_steps=1) as run:
        later = pending({"loss": jnp.asarray(1.0)})
        run.emit(1, later)
        assert run.snapshot(1, {"h": np.zeros(3)})
        until(lambda: run._session.ring.consumer().snapshots == 1)
    assert command("snapshot", "show", run.dir)["step"] == 1
    assert command("snapshot", "load", run.dir, "--to", run_dir / "state.bin")["seq"] == 1
    verified(run.dir)


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("x", "y"))
def put(a, *spec): return jax.device_put(a, NamedSharding(mesh, P(*spec)))
big = np.arange(1 << 20, dtype="f4").reshape(1024, 1024)
state = {"xy": put(big, "x", "y"), "x": put(big.astype(jnp.bfloat16), "x"), "all": put(big[:3])}
state |= {"one": jnp.asarray(big[0]), "key": jax.random.key(1)}
from usp import _saver
assert [len(_saver._parts(state[k])) for k in ("xy", "x", "all", "one")] == [4, 2, 1, 1]
want = jax.tree.map(lambda a: np.asarray(a) if a.dtype.name[:3] != "key" else None, state)
f = jax.jit(lambda s: jax.tree.map(lambda a: a * 2, s), donate_argnums=0)
def check(got):
    for k in ("xy", "x", "all", "one"): assert np.asarray(got[k]).tobytes() == want[k].tobytes(), k
with usp.Run(fields=(usp.Field("loss", "metric", "f64", 1),), state=state, save_interval_steps=1) as run:
    run.emit(1, {"loss": 1.0})
    assert run.snapshot(1, state)
    arrays = {k: v for k, v in state.items() if k != "key"}
    jax.block_until_ready(f(f(arrays)))
got, _ = usp.restore(run)
check(got)
like = {k: put(np.zeros(v.shape, v.dtype), *v.sharding.spec) for k, v in state.items() if k in ("xy", "x", "all")}
like |= {"key": state["key"], "one": jnp.zeros(1024)}
got, _ = usp.restore(run, like=like)
check(got)
assert got["xy"].sharding == like["xy"].sharding
assert got["all"].sharding.is_fully_replicated and len(got["all"].sharding.device_set) == 4
like["xy"] = put(big, "y", "x")
try:
    usp.restore(run, like=like)
except usp.SnapshotError as err:
    print(err)
got, _ = usp.restore(run, like=like, reshard=True)
check(got)
assert got["xy"].sharding == like["xy"].sharding
print("done")
"""


def test_sharded(usp_bin: str, ring_dir: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=4")
    process = program(SHARDED)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    said, done = out.splitlines()
    assert done == "done"
    assert said.startswith(
        "xy: like has mesh(x=2,y=2) spec('y', 'x'), the snapshot mesh(x=2,y=2) spec('x', 'y'); pass reshard=True"
    )


def test_without_jax(usp_bin: str, ring_dir: Path, run_dir: Path) -> None:
    """Neither numpy nor jax is needed for a state without arrays, and none is imported."""
    process = program(
        """
        with usp.Run(fields=(usp.Field("loss", "metric", "f64", 1),), state={}, save_interval_steps=1) as run:
            run.emit(1, {"loss": 1.0})
            assert run.snapshot(1, {"n": 3, "b": b"abc", "l": [1.5, None]})
        print(usp.restore(run), "jax" in sys.modules, "numpy" in sys.modules)
        """
    )
    out, err = process.communicate(timeout=60)
    assert out.strip() == "({'b': b'abc', 'l': {'0': 1.5, '1': None}, 'n': 3}, 1) False False", err


def test_encrypted(
    usp_bin: str, ring_dir: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    vectors = Path(__file__).resolve().parents[2] / "testdata" / "vectors" / "snapshot"
    key = tmp_path / "age.key"
    key.write_text((vectors / "identity.txt").read_text())
    key.chmod(0o600)
    public = next(line.split()[-1] for line in key.read_text().splitlines() if "public key" in line)
    monkeypatch.setenv("USP_SNAPSHOT_RECIPIENTS", public)
    run = record({1: {"n": np.arange(9)}})
    with pytest.raises(SnapshotError, match="is encrypted; .*identity_file"):
        usp.restore(run)
    state, _ = usp.restore(run, identity=key)
    monkeypatch.setenv("USP_SNAPSHOT_IDENTITY_FILE", str(key))
    assert (state["n"] == np.arange(9)).all() and (usp.restore(run)[0]["n"] == np.arange(9)).all()
    assert closed(Path(run.dir)) and os.path.isdir(run.dir)
