"""Run with values of the device: the ways of jax out, through the same emit, into the same run."""

from __future__ import annotations

import hashlib
import os
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from devicehelp import slow
from runs import closed, line, program, until, usp, verified

import usp as api

jax = pytest.importorskip("jax")
np = pytest.importorskip("numpy")


@pytest.fixture(autouse=True)
def quiet(usp_bin: str, ring_dir: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real program, and directories of the test's own."""
    monkeypatch.setenv("USP_BIN", usp_bin)
    monkeypatch.chdir(tmp_path)


@jax.jit
def train_step(state: Any, step: Any) -> tuple[Any, dict[str, Any]]:
    state = state + step
    return state, {"loss": state.sum(), "rho": state}


def digests(run: api.Run, field: str = "rho") -> dict[int, str]:
    """The digest of a field at each step, as the log has it."""
    found = {}
    for entry in usp("log", run.dir, "--kind", "STEP"):
        found[entry["step"]] = entry["digests"][field]
    return found


def digest(values: Any) -> str:
    return hashlib.sha256((np.asarray(values).astype("<f8") + 0.0).tobytes()).hexdigest()


@pytest.mark.parametrize("declared", [True, False])
def test_values_of_the_device(declared: bool) -> None:
    fields = api.fields(loss="metric", rho="digest")
    if declared:
        fields = api.fields(loss=api.field("metric", (), "f32"), rho=api.field("digest", 3, "f32"))
    state, states = jax.numpy.zeros(3), []
    with api.Run(fields=fields) as run:
        for step in range(200):
            state, tele = train_step(state, step)
            run.emit(step, tele)
            states.append(state)
        assert run.dropped == 0
    assert verified(run.dir)["stored"] == 200
    assert digests(run) == {step: digest(state) for step, state in enumerate(states)}
    log = b"".join(path.read_bytes() for path in (Path(run.dir) / "digests").iterdir())
    assert f"jax.version={jax.__version__}\n".encode() in log
    if not declared:
        assert b"jax.backend=cpu\njax.device_kind=cpu\njax.enable_x64=false\n" in log


def test_the_first_record_is_as_it_was() -> None:
    loss = np.ones((), np.float32)
    with api.Run(fields=api.fields(loss="metric", rho="digest")) as run:
        run.emit(0, {"loss": loss, "rho": jax.numpy.zeros(3)})
        loss[...] = 7  # the loop goes on with its buffer, before the second record is there
        run.emit(1, {"loss": loss, "rho": jax.numpy.zeros(3)})
    (shown,) = usp("show", run.dir)["fields"]
    assert (shown["min"], shown["max"]) == (1, 7)


def test_snapshots_through_the_run() -> None:
    """The lines that everybody copies: fields not declared, a state of any size, no word about shared memory."""
    state = {"w": jax.numpy.zeros(1 << 19), "n": np.zeros(3)}  # 2 MiB: more than there is by default
    with api.Run(fields=api.fields(loss="metric"), save_interval_steps=10, max_to_keep=2) as run:
        for step in range(45):
            state = {"w": state["w"] + 1, "n": state["n"] + 1}
            run.emit(step, {"loss": state["w"][0]})
            while not run.snapshot(step, state) and run.should_save(step):
                pass  # only to have all of them: a loop goes on without
        until(lambda: run.snapshot(44, state, force=True))
    assert verified(run.dir)["stored"] == 45
    assert run.summary is not None and run.summary["snapshots"] == 6
    assert run.all_steps() == [40, 44] and run.latest_step() == 44, "max_to_keep"
    restored, step = api.restore(run.dir, like=state)
    same = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), restored, state)
    assert step == 44 and jax.tree.all(same)
    assert api.latest_step(run.dir) == 44 and api.all_steps("nothing-here") == []


def test_the_example_of_the_page() -> None:
    page = (Path(__file__).parents[2] / "doc" / "python.md").read_text()
    example = page.split("```python\n")[1].split("```")[0]
    assert "usp.restore" in example

    @jax.jit
    def step(state: Any, batch: Any) -> tuple[Any, dict[str, Any]]:
        rho = jax.nn.softmax(state["w"])
        return {"w": state["w"] + batch}, {"loss": rho.max(), "rho": rho, "ot_cost": (rho * rho).sum()}

    names = {"usp": api, "n": 250, "train_step": step}
    names |= {"state": {"w": jax.numpy.zeros(5)}, "batch": jax.numpy.arange(5.0)}
    exec(compile(example, "doc/python.md", "exec"), names)
    run, state = names["run"], names["state"]
    assert verified(run.dir)["stored"] == 250 and run.summary["snapshots"] + run.summary["snapshots_dropped"] == 3
    assert names["step"] in (0, 100, 200) and isinstance(state["w"], jax.Array)
    assert (np.asarray(state["w"]) == np.arange(5.0) * (names["step"] + 1)).all()


def test_a_snapshot_before_the_first_record() -> None:
    state = {"w": jax.numpy.zeros(1 << 19)}
    with api.Run(fields=api.fields(loss="metric"), save_interval_steps=1) as run:
        assert run.snapshot(0, state) is False, "there is no record that it could follow"
        run.emit(0, {"loss": 1.0})
        assert run.native is not None, "how large a state is was known, so the run began at once"
        assert run.snapshot(0, state) is True
    assert verified(run.dir)["stored"] == 1 and run.all_steps() == [0]


def test_a_snapshot_waits_for_the_records_before_it() -> None:
    """Its place in the run is behind the record of its step, though that is still on its way when it is taken."""
    fields = api.fields(loss=api.field("metric", (), "f32"))
    f = jax.jit(lambda x: (x @ x).sum())
    big = jax.numpy.ones((600, 600))
    with api.Run(fields=fields, save_interval_steps=1, snapshot_capacity=1 << 16, max_to_keep=100) as run:
        for step in range(20):
            run.emit(step, {"loss": f(big + step)})
            run.snapshot(step, {"step": np.int64(step)})
    taken = [(e["step"], e["seq"]) for e in usp("log", run.dir, "--kind", "SNAPSHOT")]
    assert taken and all(seq >= step + 1 for step, seq in taken), taken


def test_host_and_device_keep_their_order() -> None:
    fields = api.fields(loss=api.field("metric", (), "f32"), rho=api.field("digest", 3, "f32"))
    state = jax.numpy.zeros(3)
    with api.Run(fields=fields) as run:
        for step in range(300):
            state, tele = train_step(state, step)
            run.emit(step, tele if step % 3 == 0 else {"loss": 1.0, "rho": [0.0, 0.5, step]})
    found = verified(run.dir)
    assert found["stored"] == 300 and (found["first_step"], found["last_step"]) == (0, 299)


def test_stacked_and_packed() -> None:
    fields = api.fields(loss="metric", rho="digest")
    steps = jax.numpy.arange(64)
    state, tele = jax.lax.scan(train_step, jax.numpy.zeros(3), steps)
    with api.Run(fields=fields) as run:
        run.emit_many(range(64), tele)
        packed = jax.jit(lambda tele: run.pack({"loss": tele["loss"][0], "rho": tele["rho"][0]}))(tele)
        run.emit(64, packed)
        with pytest.raises(api.StepError):
            run.emit(64, packed)
    assert verified(run.dir)["stored"] == 65
    found = digests(run)
    assert found[63] == digest(tele["rho"][63]) and found[64] == digest(tele["rho"][0])


def test_what_is_dropped_at_the_end_names_the_users_line() -> None:
    donate = jax.jit(lambda x: x + 1, donate_argnums=0)
    donate(jax.numpy.float32(0))
    begin = slow(2)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", api.Warning)
        with api.Run(fields=api.fields(loss=api.field("metric", (), "f32"))) as run:
            x = begin()
            run.emit(1, {"loss": x})
            donate(x)
    ours = [w for w in told if issubclass(w.category, api.Warning)]
    assert [w.filename for w in ours] == [__file__] and "donated or deleted" in str(ours[0].message), ours
    assert run.summary is not None and (run.summary["dropped"], run.summary["stored"]) == (1, 0)


@pytest.fixture
def traced() -> None:
    """Skips where programs cannot write records themselves."""
    native = pytest.importorskip("usp._native", reason="the extension is not built")
    if not hasattr(native, "xla_handler"):
        pytest.skip("the extension was built without the call from XLA")


@pytest.mark.usefixtures("traced")
def test_from_inside_the_program() -> None:
    with pytest.warns(api.DroppedWarning, match="100 records of compiled programs") as told, api.Run(
        fields=api.fields(loss="metric", rho="digest")
    ) as run:

        @jax.jit
        def train(state: Any, steps: Any) -> Any:
            def body(state: Any, step: Any) -> tuple[Any, Any]:
                state = state + step
                return state, run.emit_traced(step, {"loss": state.sum(), "rho": state})

            return jax.lax.scan(body, state, steps)

        jax.block_until_ready(train(jax.numpy.zeros(3), jax.numpy.arange(100)))
        assert run.emitted == 100 and run.dropped == 0
        jax.block_until_ready(train(jax.numpy.zeros(3), jax.numpy.arange(100)))  # steps that go back
        assert run.emitted == 100 and run.dropped == 100
    assert verified(run.dir)["stored"] == 100
    assert run.summary is not None and run.summary["dropped"] == 100 == run.dropped and run.summary.complete
    assert [w.filename for w in told] == [__file__], "the warning does not name the line of the user's program"


@pytest.mark.usefixtures("traced")
def test_dropped_steps_of_programs_as_an_error() -> None:
    """A filter that makes the warning an exception has its way, when everything that was emitted is stored."""
    with pytest.raises(api.DroppedWarning, match="1 record of compiled programs"), warnings.catch_warnings():
        warnings.simplefilter("error", api.DroppedWarning)
        with api.Run(fields=api.fields(loss=api.field("metric", (), "f32"))) as run:
            program = jax.jit(lambda x: run.emit_traced(7, {"loss": x}))
            for _ in range(2):
                jax.block_until_ready(program(jax.numpy.float32(1)))
    assert verified(run.dir)["stored"] == 1


@pytest.mark.usefixtures("traced", "ring_dir")
def test_all_that_went_wrong_as_one_error() -> None:
    """Of several warnings that a filter makes exceptions only one can be raised: it has the others with it."""
    run = api.Run(fields=api.fields(loss=api.field("metric", (), "f32")), record="outside", drain_timeout=0.1)
    program = jax.jit(lambda x: run.emit_traced(7, {"loss": x}))
    for _ in range(2):
        jax.block_until_ready(program(jax.numpy.float32(1)))
    with warnings.catch_warnings():
        warnings.simplefilter("error", api.Warning)
        with pytest.raises(api.IncompleteWarning, match="0 of 1 records") as told:
            run.close()
    (other,) = told.value.__notes__
    assert other.startswith("and DroppedWarning: 1 record of compiled programs"), other


def test_what_is_wrong_with_values_of_the_device() -> None:
    with api.Run(fields=api.fields(loss="metric", rho="digest")) as lazy:
        with pytest.raises(api.FieldError, match="rho"):
            lazy.emit(0, {"loss": jax.numpy.float32(1)})
        lazy.emit(0, {"loss": jax.numpy.float32(1), "rho": jax.numpy.zeros(2)})
        with pytest.raises(api.FieldError, match="rho"):
            lazy.emit(1, {"loss": jax.numpy.float32(1), "rho": jax.numpy.zeros(3)})
        with pytest.raises(api.StepError):
            lazy.emit(0, {"loss": jax.numpy.float32(1), "rho": jax.numpy.zeros(2)})
        with pytest.raises(api.FieldError):
            jax.jit(lambda x: lazy.emit(1, {"loss": x, "rho": x[None].repeat(2)}))(jax.numpy.float32(1))
    assert verified(lazy.dir)["stored"] == 1
    declared = api.fields(loss="metric", rho=api.field("digest", 3, "f32"))
    with api.Run(fields=declared) as run:
        with pytest.raises(api.FieldError, match="float32|elements"):
            run.emit(0, {"loss": jax.numpy.float32(1), "rho": jax.numpy.zeros(2)})
    assert run.summary is not None and run.summary["emitted"] == 0


def test_sigterm_does_not_lose_what_is_on_its_way() -> None:
    process = program("""
    import jax
    f = jax.jit(lambda x: {"loss": x * 2})
    with usp.Run(fields=usp.fields(loss="metric")) as run:
        for step in range(100):
            run.emit(step, f(jax.numpy.float32(step)))
        print(run.dir, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    """)
    run = line(process)
    process.communicate(timeout=60)
    assert process.returncode == -15
    assert closed(Path(run)) and verified(run, end="failed")["stored"] == 100


def test_fork_while_steps_wait_their_turn() -> None:
    """What waits behind a step on the device is the parent's: it stores each in order, and the child none."""
    process = program("""
    import jax, jax.numpy as jnp, warnings
    warnings.simplefilter("ignore", RuntimeWarning)  # jax's, of forking
    x = jnp.full((200, 200), 0.001, jnp.float32)
    begin = jax.jit(lambda n: jax.lax.fori_loop(0, n, lambda i, a: jnp.tanh(a @ x), x).sum().astype(jnp.int32))
    (begin(1) * 0 + 10).block_until_ready()
    def took():
        began = time.perf_counter()
        begin(200).block_until_ready()
        return time.perf_counter() - began
    rounds = int(3 * 200 / min(took() for _ in range(3))) + 1  # for three seconds
    with usp.Run(fields=usp.fields(loss="digest")) as run:
        run.emit(1, {"loss": 1.0})
        run.emit(begin(rounds) * 0 + 10, {"loss": jnp.float32(2)})
        for step in range(11, 31):
            run.emit(step, {"loss": 3.0})
        assert run._session.queue().pending() == 21, run._session.queue().pending()
        pid = os.fork()
        if pid == 0:
            try:
                run.emit(31, {"loss": 4.0})
                os._exit(1)
            except usp.ForkedError:
                run.close()
                os._exit(3)
        run.emit(32, {"loss": 5.0})
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(run.dir, code, flush=True)
    """)
    run, code = line(process).split()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and code == "3", err
    assert verified(run)["stored"] == 23
    assert [e["step"] for e in usp("log", run, "--kind", "STEP")] == [1, *range(10, 31), 32]


def test_end_of_a_program_with_a_backend() -> None:
    """The run ends before jax takes its backends down, or the values on their way would be gone."""
    process = program("""
    import jax
    f = jax.jit(lambda x: {"loss": x * 2})
    run = usp.Run(fields=usp.fields(loss="metric"))
    for step in range(500):
        run.emit(step, f(jax.numpy.float32(step)))
    print(run.dir, flush=True)
    """)
    run = line(process)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert verified(run)["stored"] == 500
    assert os.path.isdir(run)


def test_a_device_that_keeps_the_ring(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a device may still write to stays mapped, and the end says so."""
    from usp import _xla

    monkeypatch.setattr(_xla, "release", lambda ring, timeout: "the device has not given the ring back")
    run = api.Run(fields=api.fields(loss=("metric", 1)))
    run.emit(0, {"loss": 1.0})
    ring = run._session.ring
    with pytest.warns(api.IncompleteWarning, match="has not given the ring back"):
        run.close()
    assert ring.consumer().stored == 1, "the ring was unmapped"
    ring.close()
    assert ring.consumer().stored == 0
    assert verified(run.dir)["stored"] == 1


@pytest.mark.usefixtures("traced")
def test_programs_on_their_way_are_waited_for() -> None:
    """Records of programs that were called and have not ended are in the run: nobody waited for their results."""
    run = api.Run(fields=api.fields(loss=api.field("metric", (), "f32")))

    @jax.jit
    def epoch(step: Any, x: Any) -> tuple[Any, Any]:
        def body(carry: Any, _: Any) -> tuple[Any, None]:
            step, x = carry
            x = jax.numpy.sin(x @ x)
            step = run.emit_traced(step, {"loss": x[0, 0]})
            return (step + 1, x), None

        return jax.lax.scan(body, (step, x), None, length=200)[0]

    with run:
        step, x = jax.numpy.int32(0), jax.numpy.ones((64, 64), "float32") / 64
        epoch.lower(step, x).compile()
        for _ in range(20):
            step, x = epoch(step, x)
        del step, x
    assert run.summary is not None and run.summary["emitted"] == 4000 and run.summary["complete"], run.summary
    assert verified(run.dir)["stored"] == 4000


def test_programs_that_do_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end does not hang on a device that does, and says what is missing."""
    from usp import _xla

    hung = threading.Event()

    class Token:
        def block_until_ready(self) -> None:
            hung.set()
            time.sleep(3)

    monkeypatch.setattr(_xla, "_tokens", lambda: [Token()])
    run = api.Run(fields=api.fields(loss=api.field("metric", (), "f32")), drain_timeout=0.3)
    _xla._traced.set()
    run.emit(0, {"loss": 1.0})
    with pytest.warns(api.IncompleteWarning, match="were not at their end after 0.3 s"):
        run.close()
    assert hung.is_set() and run.summary is not None and run.summary["stored"] == 1
