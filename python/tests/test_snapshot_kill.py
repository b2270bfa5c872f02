"""Whatever is killed, and whenever: the newest complete snapshot is restored, and it is one that was saved."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import usp
from runs import closed, line, program, until
from runs import usp as command

ROUNDS = 200 if os.environ.get("TORTURE") else 10

LOOP = """
import numpy as np
kind = sys.argv[1]
if kind == "jax":
    import jax.numpy as jnp
    make = lambda n: {"a": jnp.full((3, 1 << 18), n, jnp.float32), "b": jnp.full(5, n), "n": n}
else:
    make = lambda n: {"a": np.full((3, 1 << 18), n, np.float32), "b": np.full(5, n), "n": n}
saved = []
with usp.Run(fields=(usp.Field("loss", "metric", "f64", 1),), state=make(0), save_interval_steps=1) as run:
    consumer = run._session.ring.consumer
    step = 0
    print(run.id, flush=True)
    while not os.path.exists(sys.argv[2]):
        step += 1
        run.emit(step, {"loss": step})
        if run.snapshot(step, make(step)):
            saved.append(step)
        seen = consumer()
        print(saved[min(seen.snapshots, len(saved)) - 1] if seen.snapshots else 0, seen.pid, flush=True)
        time.sleep(0.002)
    last = saved[-1]
print("end", last, run.summary["snapshots"], flush=True)
"""


def newest(run: Path) -> int:
    """The step of the snapshot that is restored, which must hold that step's state; 0 if there is none."""
    if usp.latest_step(run) is None:
        return 0
    state, step = usp.restore(run)
    assert state["n"] == step and (state["a"] == step).all() and (state["b"] == step).all(), (
        f"the state of step {step} is torn"
    )
    like, again = usp.restore(run, like={"a": np.zeros((3, 1 << 18), "f4"), "b": state["b"], "n": 0})
    assert again == step and (like["a"] == step).all()
    return step


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    """Whether a process runs still; one that is dead and not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def watch(process: subprocess.Popen[str], seconds: float) -> tuple[int, int]:
    """Reads what the loop prints for some time; returns the newest step that is durable, and the recorder's pid."""
    durable = recorder = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end or not recorder:
        step, pid = map(int, line(process).split())
        durable, recorder = max(durable, step), pid or recorder
    return durable, recorder


def once(what: str, kind: str, delay: float, run_dir: Path, ring_dir: Path, stop: Path) -> None:
    """One run, of which something is killed after delay seconds."""
    process = program(LOOP, kind, str(stop), start_new_session=True)
    try:
        run = run_dir / line(process)
        durable, recorder = watch(process, delay)
        if what == "recorder":
            kill(recorder)
        else:
            kill(process.pid)
            process.wait()
            # What it had printed still, before it died.
            rest = [text.split() for text in (process.stdout or [])]
            durable = max([durable, *(int(words[0]) for words in rest if len(words) == 2)])
        if what == "both":
            kill(recorder)  # now that nobody starts another one
            until(lambda: not alive(recorder))
        if what == "both":
            found = newest(run) if run.exists() else 0
            assert found >= durable, "a snapshot that was complete is lost"
            ring = ring_dir / f"{run.name}.ring"
            if ring.exists():
                subprocess.run(
                    [os.environ["USP_BIN"], "record", str(ring)], check=True, capture_output=True, timeout=60
                )
            assert newest(run) >= found
        elif what == "python":
            assert closed(run) and newest(run) >= durable, "a snapshot that was complete is lost"
        else:
            later, _ = watch(process, 0.3)
            stop.touch()
            out, err = process.communicate(timeout=60)
            assert process.returncode == 0, err
            last = int(out.split("end ")[1].split()[0])
            assert newest(run) == last >= max(durable, later), "the last one was taken, and is not there"
        assert command("verify", run, ok=(0, 21))["verdict"] == "ok"
    finally:
        kill(process.pid)
        process.communicate()


@pytest.mark.parametrize("what", ["python", "recorder", "both"])
def test_killed(what: str, usp_bin: str, ring_dir: Path, run_dir: Path, tmp_path: Path) -> None:
    seed = int(os.environ.get("SEED", time.time_ns() % 10**6))
    chance = random.Random(f"{what}{seed}")
    for i in range(max(1, ROUNDS // 3)):
        kind, delay = chance.choice(["jax", "numpy"]), chance.uniform(0, 0.5)
        try:
            once(what, kind, delay, run_dir, ring_dir, tmp_path / f"stop{i}")
        except BaseException as err:
            err.add_note(f"round {i}, SEED={seed}: {what} with {kind} killed after {delay:.3f} s")
            raise


def test_killed_at_the_copy(usp_bin: str, ring_dir: Path, run_dir: Path) -> None:
    """The loop dies with a staging area half written: the state before it is the newest."""
    process = program(
        """
        import numpy as np
        from usp import _saver
        state = {"n": np.full(1000, 1)}
        with usp.Run(fields=(usp.Field("loss", "metric", "f64", 1),), state=state, save_interval_steps=1) as run:
            print(run.id, flush=True)
            run.emit(1, {"loss": 1.0})
            assert run.snapshot(1, state)
            while run._session.ring.consumer().snapshots < 1:
                time.sleep(0.01)
            run.emit(2, {"loss": 1.0})
            put = _saver._Job._put
            def die(job, i, dst):
                dst[:16] = b"x" * 16
                os.kill(os.getpid(), signal.SIGKILL)
            _saver._Job._put = die
            run.snapshot(2, {"n": np.full(1000, 2)})
        """
    )
    run: Any = run_dir / line(process)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert closed(run)
    state, step = usp.restore(run)
    assert step == 1 and (state["n"] == 1).all() and usp.all_steps(run) == [1]
