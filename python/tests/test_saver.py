"""States are saved as they are when snapshot() is called, and nothing is waited for."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import usp
from runs import until
from states import FIELDS, arrays, consistent, donate, pending
from usp import SnapshotError, _saver
from usp import _pytree as pt
from usp._ring import Ring
from usp._saver import Saver, size
from usp._schema import Schema
from usp._snapshot import _described, _nested

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
    saver, area = areas(arrays(2))
    state = pending(arrays(2))
    if state["a"].is_ready():
        pytest.fail("the state was to be on its way still")
    assert saver.save(1, 1, state)
    after = donate(donate(state))
    jax.block_until_ready(after)
    assert consistent(area.take(1), 2) and consistent(after, 4)


def test_what_flies_is_copied_by_few_programs(areas: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that ends while its leaves are looked at leaves another part of them on its way each time."""
    leaves = 12
    state = {f"{i:02}": jnp.full(1511 + i, 6.0) for i in range(leaves)}  # shapes of no other test
    saver, area = areas(state)
    programs: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **about: programs.append(event) if event.endswith("backend_compile_duration") else None
    )
    flying: set[int] = set()
    monkeypatch.setattr(Saver, "_ready", lambda self, i, array, cached: i not in flying)

    def save(step: int, those: Iterable[int]) -> int:
        before = len(programs)
        flying.clear()
        flying.update(those)
        assert saver.save(step, 1, state)
        assert consistent(area.take(step), 6)
        until(lambda: saver._pending == 0)
        return len(programs) - before

    assert sum(save(1 + n, range(n)) for n in range(leaves + 1)) == 0, "all are copied by the program that size() made"
    # Those that fly twice in a row are a part for good: the others are not copied.
    assert [save(20 + k, range(3)) for k in range(3)] == [0, 1, 0]
    assert sum(save(30 + k, range(1 + k // 2)) for k in range(2 * leaves)) == _saver.PROGRAMS - 1, "and they are few"


def test_host_arrays_may_be_written_to(areas: Any) -> None:
    for n, state in enumerate(
        (
            {"h": np.full(1 << 20, 5.0), "f": np.full((3, 4), 5, order="F")[::2], "s": np.float32(5)},
            {"h": np.full(9, 5.0), "d": arrays(5)},
        )
    ):
        held = threading.Event()
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
    with pytest.warns(
        usp.Warning,
        match=r"step 1 takes 33\d+ bytes, and a staging area has 4096: .*snapshot_capacity=33\d+.*ring.staging_cap",
    ):
        assert not saver.save(1, 1, state)
    assert not saver.save(2, 1, state), "one warning is enough"
    assert (saver.dropped, area.ring.drops) == (2, 2)
    assert saver.save(3, 1, {"h": np.zeros(40)})


def test_no_areas(areas: Any) -> None:
    saver, area = areas({}, n=0, capacity=0)
    assert not saver.save(1, 1, {"h": np.zeros(4096)}), "dropped, without a warning"
    assert (saver.dropped, area.ring.drops) == (1, 1)


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
    until(lambda: not saver._thread.is_alive())


def test_nothing_is_waited_for(areas: Any) -> None:
    saver, area = areas(arrays(1))
    state = pending(arrays(1))
    times = []
    for step in (1, 2):
        begin = time.perf_counter()
        assert saver.save(step, 1, state, lambda: False)
        times.append(time.perf_counter() - begin)
    assert not state["a"].is_ready(), "a call waited for the device"
    assert not area.ready() and max(times) < 2


def test_the_copy_on_the_device_is_not_made_in_the_call() -> None:
    array = jnp.ones(1 << 26).block_until_ready()
    jax.block_until_ready(_saver._program()([array]))

    def at_once() -> bool:
        (copy,) = _saver._program()([array])
        return bool(copy.is_ready())  # or this thread was away for as long as another one copied

    assert not all(at_once() for _ in range(5)), "256 MiB were copied by the calling thread"
