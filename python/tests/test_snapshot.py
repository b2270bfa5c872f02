"""States are saved as they are when snapshot() is called, without a wait, and restored as they were saved."""

from __future__ import annotations

import dataclasses
import os
import threading
import time
import warnings
from collections.abc import Iterator
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
from usp import SnapshotError, _saver
from usp import _pytree as pt
from usp._ring import Ring
from usp._saver import Saver, size
from usp._schema import Field, Schema
from usp._snapshot import _described, _nested

FIELDS = (Field("loss", "metric", "f64", 1),)
FREE, READY = 0, 2


class Area:
    """The consumer's side of a ring's staging areas, which a test plays."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring

    def words(self, i: int) -> list[int]:
        """State, step, seq, ticket, length, generation and reason."""
        w = self.ring._areas[i].words
        return [w[16], w[32], w[33], w[34], w[35], w[36]]

    def ready(self) -> dict[int, int]:
        """Area by step of the states that are ready."""
        return {w[1]: i for i in range(len(self.ring._areas)) if (w := self.words(i))[0] == READY}

    def take(self, step: int) -> Any:
        """Waits for the state of a step and gives its area back."""
        until(lambda: step in self.ready())
        i = self.ready()[step]
        n = self.words(i)[4]
        found = pt.sections(memoryview(bytes(self.ring._areas[i].view[4096 : 4096 + n])))
        self.ring._areas[i].words[16] = FREE
        return _nested(_described(found), found)


@pytest.fixture
def areas(ring_dir: Path) -> Iterator[Any]:
    """Makes a saver with staging areas for a state."""
    made: list[tuple[Saver, Ring]] = []

    def make(state: Any, n: int = 2, capacity: int | None = None) -> tuple[Saver, Area]:
        ring = Ring(
            ring_dir / f"r{len(made)}", "run", Schema("s.v1", FIELDS), b"{}", slots=16, staging_areas=n,
            staging_capacity=size(state) if capacity is None else capacity,
        )  # fmt: skip
        made.append((Saver(ring), ring))
        return made[-1][0], Area(ring)

    yield make
    for saver, ring in made:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of those that a test left on their way
            saver.close(0)
        ring.close()


def arrays(n: float, megabytes: int = 3) -> dict[str, Any]:
    """A state that is not copied in the call, whose every element is n."""
    return {"a": jnp.full((megabytes, 1 << 18), n, jnp.float32), "b": jnp.full(7, n, jnp.bfloat16), "n": int(n)}


def consistent(state: Any, n: float) -> bool:
    """Whether every element is n."""
    return all(bool((np.asarray(leaf, "f8") == n).all()) for leaf in jax.tree.leaves(state))


donate = jax.jit(lambda s: jax.tree.map(lambda a: a + 1, s), donate_argnums=0)


@jax.jit
def slowly(state: Any, work: Any) -> Any:
    """The state, when work has been done."""
    for _ in range(6):
        work = work @ work * 1e-3
    return jax.tree.map(lambda a: a + (0 * work[0, 0]).astype(a.dtype), state)


def pending(state: Any) -> Any:
    """A state that is not computed yet."""
    jax.block_until_ready(slowly(state, jnp.ones((900, 900))))
    later = slowly(state, jnp.ones((900, 900)))
    return later


# Saving


def test_ready_arrays_may_be_donated(areas: Any) -> None:
    state = arrays(1)
    saver, area = areas(state)
    held = threading.Event()
    assert saver.save(1, 1, state, held.is_set)
    kept = jax.tree.map(lambda a: a.unsafe_buffer_pointer(), {k: v for k, v in state.items() if k != "n"})
    after = donate(state)
    jax.block_until_ready(after)
    assert after["a"].unsafe_buffer_pointer() != kept["a"], "the buffer was given away"
    for _ in range(3):
        after = donate(after)
    jax.block_until_ready(after)
    held.set()
    assert consistent(area.take(1), 1)
    # Once it is saved, nothing of it is held: buffers are donated again.
    until(lambda: saver._pending == 0)
    where = after["a"].unsafe_buffer_pointer()
    assert donate(after)["a"].unsafe_buffer_pointer() == where


def test_small_ready_arrays_are_there_at_once(areas: Any) -> None:
    state = {"a": jnp.full(100, 4.0), "h": np.full(9, 4.0)}
    saver, area = areas(state)
    assert saver.save(3, 2, state)
    assert list(area.ready()) == [3] and saver._thread is None
    assert area.words(area.ready()[3])[5] >> 32 == 2
    assert consistent(area.take(3), 4)


def test_pending_arrays_may_be_donated(areas: Any) -> None:
    state = pending(arrays(2))
    saver, area = areas(arrays(2))
    if state["a"].is_ready():
        pytest.fail("the state was to be on its way still")
    assert saver.save(1, 1, state)
    after = donate(donate(state))
    jax.block_until_ready(after)
    assert consistent(area.take(1), 2) and consistent(after, 4)


def test_host_arrays_may_be_written_to(areas: Any) -> None:
    held = threading.Event()
    for n, state in enumerate(({"h": np.full(1 << 20, 5.0), "f": np.full((3, 4), 5, order="F")[::2], "s": np.float32(5)}, {"h": np.full(9, 5.0), "d": arrays(5)})):
        saver, area = areas(state)
        assert saver.save(1, 1, state, held.is_set if n else None)
        state["h"][:] = -1
        held.set()
        assert consistent(area.take(1), 5)
        assert saver.save(2, 1, state)
        assert (area.take(2)["h"] == -1).all()


def test_two_may_be_on_their_way_and_no_more(areas: Any) -> None:
    saver, area = areas(arrays(0))
    held = threading.Event()
    assert saver.save(1, 1, arrays(1), held.is_set)
    assert saver.save(2, 1, arrays(2))
    assert not saver.save(3, 1, arrays(3)), "both areas are promised"
    assert (saver.dropped, area.ring.drops) == (1, 1)
    held.set()
    until(lambda: len(area.ready()) == 2)
    tickets = {step: area.words(i)[3] for step, i in area.ready().items()}
    assert tickets[1] < tickets[2]
    assert not saver.save(4, 1, arrays(4)), "both areas are with the recorder"
    assert not saver.save(5, 1, {"h": np.zeros(3)})
    assert (saver.dropped, area.ring.drops) == (3, 3)
    assert consistent(area.take(1), 1)
    assert saver.save(6, 1, arrays(6))
    assert consistent(area.take(2), 2) and consistent(area.take(6), 6)
    assert (saver.staged, saver.failed) == (3, 0)


def test_small_ones_do_not_overtake(areas: Any) -> None:
    saver, area = areas(arrays(0))
    held = threading.Event()
    assert saver.save(1, 1, arrays(1), held.is_set)
    assert saver.save(2, 1, {"h": np.zeros(3)})
    time.sleep(0.05)
    assert not area.ready()
    held.set()
    until(lambda: len(area.ready()) == 2)
    assert area.words(area.ready()[1])[3] == 0 and area.words(area.ready()[2])[3] == 1


def test_records_of_the_step_come_first(areas: Any) -> None:
    saver, area = areas({"h": np.zeros(3)})
    written = []
    assert saver.save(1, 1, {"h": np.zeros(3)}, lambda: bool(written))
    time.sleep(0.05)
    assert not area.ready()
    area.ring.emit(bytes(24))
    written.append(1)
    until(area.ready)
    assert area.words(area.ready()[1])[2] == 1, "the position is that behind the record"


def test_too_large(areas: Any) -> None:
    saver, area = areas({}, capacity=4096)
    state = {"h": np.zeros(4096)}
    with pytest.warns(usp.Warning, match=r"step 1 takes 33\d+ bytes, and a staging area has 4096: .*snapshot_capacity=33\d+.*ring.staging_capacity"):
        assert not saver.save(1, 1, state)
    assert not saver.save(2, 1, state), "one warning is enough"
    assert (saver.dropped, area.ring.drops) == (2, 2)
    assert saver.save(3, 1, {"h": np.zeros(40)})


def test_the_size_that_was_measured_is_enough(areas: Any) -> None:
    state = {"n": 1, "s": "x", "h": np.zeros(3)}
    saver, area = areas(state)
    assert saver.save(1, 1, {"n": 2**64, "s": "y" * 3000, "h": np.ones(3)})
    assert area.take(1)["n"] == 2**64


def test_donated_before_the_call(areas: Any) -> None:
    for state in (arrays(1), pending(arrays(1))):
        saver, _ = areas(arrays(1))
        jax.block_until_ready(donate(state))
        if state["a"].is_deleted():
            with pytest.raises(SnapshotError, match=r"^a was donated or deleted before snapshot"):
                saver.save(1, 1, state)
        assert saver.save(2, 1, arrays(3)), "the next one is not affected"


def test_device_without_room(areas: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    state = pending(arrays(3))
    saver, area = areas(arrays(3))

    def full(arrays: Any) -> Any:
        raise RuntimeError("RESOURCE_EXHAUSTED")

    monkeypatch.setitem(_saver._found, "copy", full)
    with pytest.warns(usp.Warning, match="could not copy the state .*RESOURCE_EXHAUSTED.* wait for their transfer"):
        assert saver.save(1, 1, state)
    assert consistent(area.take(1), 3)


def test_what_fails_in_the_thread_is_said(areas: Any) -> None:
    saver, _ = areas(arrays(1))

    asked: list[int] = []

    def broken() -> bool:
        asked.append(1)
        if len(asked) > 1:
            raise ValueError("no")
        return False

    assert saver.save(1, 1, arrays(1), broken)
    until(lambda: saver.failed == 1)
    with pytest.warns(usp.Warning, match="the snapshot of step 1 failed: ValueError: no"):
        assert saver.save(2, 1, arrays(1))
    until(lambda: saver.staged == 1)
    with pytest.warns(usp.Warning, match="1 snapshots that were taken did not reach the recorder"):
        saver.close(5)


def test_close_waits_for_those_on_their_way(areas: Any) -> None:
    saver, area = areas(arrays(1))
    assert saver.save(1, 1, pending(arrays(1)))
    saver.close(30)
    assert consistent(area.take(1), 1)
    with pytest.raises(usp.ClosedError):
        saver.save(2, 1, arrays(1))


def test_close_does_not_hang(areas: Any) -> None:
    saver, area = areas(arrays(1), n=1)
    assert saver.save(1, 1, arrays(1), lambda: False)
    begin = time.monotonic()
    with pytest.warns(usp.Warning, match="1 snapshots that were taken"):
        saver.close(0.2)
    assert time.monotonic() - begin < 5 and not area.ready()


def test_nothing_is_waited_for(areas: Any) -> None:
    state = pending(arrays(1))
    saver, area = areas(arrays(1))
    times = []
    for step in (1, 2):
        begin = time.perf_counter()
        assert saver.save(step, 1, state, lambda: False)
        times.append(time.perf_counter() - begin)
    assert not state["a"].is_ready(), "a call waited for the device"
    assert not area.ready() and max(times) < 2


# Restoring


@dataclasses.dataclass
class Pair:
    """A dataclass in a state."""

    left: Any
    right: Any


jax.tree_util.register_dataclass(Pair)


def rich() -> dict[str, Any]:
    """A state of many kinds."""
    params = {"dense": {"kernel": jnp.arange(12.0).reshape(3, 4), "bias": jnp.ones(4, jnp.bfloat16)}, "empty": jnp.zeros((0, 3))}
    return {
        "params": params, "opt": optax.adam(1e-3).init(params), "pair": Pair(1, (2.5, [None])), "key": jax.random.key(3),
        "keys": jax.random.split(jax.random.key(4), 3), "np": np.arange(5, dtype="u1"), "g": np.float32(2), "b": b"\x00\xff", "s": "é",
        "weak": jnp.asarray(3), "z": 1j, "big": 10**40,
    }  # fmt: skip


def equal(a: Any, b: Any) -> bool:
    """Alike to the bit."""
    fa, sa = jax.tree.flatten(a, is_leaf=lambda x: x is None)
    fb, sb = jax.tree.flatten(b, is_leaf=lambda x: x is None)
    return sa == sb and all(map(leaf_equal, fa, fb))


def leaf_equal(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if pt.kind(a) == "key":
        a, b = jax.random.key_data(a), jax.random.key_data(b)
    if hasattr(a, "dtype"):
        weak = getattr(a, "weak_type", None) == getattr(b, "weak_type", None)
        return weak and a.dtype == b.dtype and a.shape == b.shape and np.asarray(a).tobytes() == np.asarray(b).tobytes()
    return bool(a == b)


def record(states: dict[int, Any], **options: Any) -> usp.Run:
    """Records a run with a snapshot of each state."""
    with usp.Run(fields=FIELDS, state=next(iter(states.values())), save_interval_steps=1, staging_areas=4, **options) as run:
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
        state, step = usp.restore(run, like=jax.tree.map(lambda a: a * 0 if hasattr(a, "shape") and pt.kind(a) != "key" else a, rich()))
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
    assert isinstance(state["params"]["dense"]["kernel"], np.ndarray) and state["params"]["dense"]["bias"].dtype == jnp.bfloat16
    assert (state["params"]["dense"]["kernel"] == np.arange(12.0).reshape(3, 4)).all() and state["params"]["empty"].shape == (0, 3)
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


@pytest.mark.parametrize(("change", "says"), [
    ({"np": np.zeros(6, "u1")}, r"^np: like has uint8\[6\], the snapshot uint8\[5\]$"),
    ({"np": np.zeros(5, "i1")}, r"^np: like has int8\[5\], the snapshot uint8\[5\]$"),
    ({"g": 2.0}, r"^g: like has a Python float, the snapshot float32\[\]$"),
    ({"big": 1.5}, r"^big: like has a Python float, the snapshot a Python int$"),
    ({"s": None}, r"^s: like has None, the snapshot a Python str$"),
    ({"key": jnp.zeros(2, "u4")}, r"^key: like has uint32\[2\], the snapshot uint32\[2\], a key of threefry2x32$"),
    ({"key": jax.random.key(0, impl="rbg")}, r"^key: like has a key of rbg and shape \[\], the snapshot .*threefry"),
    ({"weak": jax.random.key(0)}, r"^weak: like has key<fry>\[\], the snapshot int32\[\]$"),
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
    assert usp.latest_step("nowhere") is None and usp.all_steps(run_dir / "none") == []
    with pytest.raises(SnapshotError, match="nowhere"):
        usp.restore("nowhere")


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
    with pytest.raises(SnapshotError, match="step 2 not loaded: .*damaged at byte .*; no snapshot of the run can be loaded"):
        usp.restore(run, step=2)
    damage(run, 1, 700)
    with pytest.raises(SnapshotError, match="no snapshot of the run can be loaded"):
        usp.restore(run, like={"n": np.zeros(300, "i8")})


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
state = {"xy": put(big, "x", "y"), "x": put(big.astype(jnp.bfloat16), "x"), "all": put(big[:3]), "one": jnp.asarray(big[0]), "key": jax.random.key(1)}
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
like = {k: put(np.zeros(v.shape, v.dtype), *v.sharding.spec) if k in ("xy", "x", "all") else v for k, v in state.items() if k != "one"} | {"one": jnp.zeros(1024)}
got, _ = usp.restore(run, like=like)
check(got)
assert got["xy"].sharding == like["xy"].sharding and got["all"].sharding.is_fully_replicated and len(got["all"].sharding.device_set) == 4
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
    assert said.startswith("xy: like has mesh(x=2,y=2) spec('y', 'x'), the snapshot mesh(x=2,y=2) spec('x', 'y'); pass reshard=True")


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


def test_encrypted(usp_bin: str, ring_dir: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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
