"""Run, with the real recorder: what is emitted is stored, and what is wrong is said."""

from __future__ import annotations

import gc
import io
import json
import math
import os
import platform
import re
import subprocess
import weakref
from pathlib import Path
from typing import Any

import pytest
from runs import closed, until, usp, verified

import usp as api

FIELDS = api.fields(loss=("metric", 1), rho=("digest", 4))


def values(step: int) -> dict[str, Any]:
    return {"loss": step / 8, "rho": [0.25, step / 2, 0.5, -step / 4]}


@pytest.fixture(autouse=True)
def quiet(usp_bin: str, ring_dir: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real program, and directories of the test's own."""
    monkeypatch.setenv("USP_BIN", usp_bin)
    monkeypatch.chdir(tmp_path)


def test_every_record_is_stored(ring_dir: Path, run_dir: Path) -> None:
    with api.Run(fields=FIELDS, producer={"seed": 7}) as run:
        assert re.fullmatch(r"\d{8}T\d{6}-[0-9a-hjkmnp-tv-z]{5}", run.id)
        assert Path(run.dir) == run_dir / run.id and Path(run.dir).is_dir(), "the recorder has it open"
        for step in range(20_000):
            run.emit(step, values(step))
        assert run.emitted == 20_000 and run.dropped == 0
        assert run._session is not None and run.emit == run._session.emit, "nothing stands before the emitter"
    found = verified(run.dir)
    assert (found["stored"], found["lost"], found["digests"]) == (20_000, 0, 20_000)
    assert (found["first_step"], found["last_step"]) == (0, 19_999)
    summary = run.summary
    assert summary is not None and summary.complete and summary == run.close()
    assert (summary["emitted"], summary["stored"], summary["lost"], summary["digests"]) == (20_000, 20_000, 0, 20_000)
    assert summary["status"] == "clean" and summary["run_id"] == run.id and run.lost() == 0 and run.emitted == 20_000
    assert run.native is not None, "it is also known when the run has ended"
    shown = {field["name"]: field for field in usp("show", run.dir)["fields"]}
    assert (shown["loss"]["min"], shown["loss"]["last"]) == (0, 19_999 / 8) and "rho" not in shown
    assert list(ring_dir.iterdir()) == [], "the recorder removes the ring"
    producer = json.loads((Path(run.dir) / "manifest.json").read_text())["producer"]
    assert producer == {"program": "usp-python", "version": api.__version__, "settings": {"seed": 7}}
    log = b"".join(path.read_bytes() for path in (Path(run.dir) / "digests").iterdir())
    assert f"\npython.version={platform.python_version()}\nusp.version={api.__version__}\n".encode() in log


def test_the_first_emit_declares_what_was_not(run_dir: Path) -> None:
    np = pytest.importorskip("numpy")
    with api.Run(fields=api.fields(loss="metric", regime="flag", rho="digest")) as run:
        assert run.schema is None and run.native is None
        rho, emit = np.full(3, 0.5, dtype=np.float32), run.emit
        emit(1, {"loss": np.float32(2.5), "regime": 3, "rho": rho})
        rho[:] = 9  # the loop goes on with its buffers
        assert not run_dir.exists(), "a ring is made when it is known whether there are snapshots"
        emit(2, {"loss": np.float32(3.5), "regime": 4, "rho": rho})
        assert run.emitted == 2 and run_dir.exists()
    text = json.loads((Path(run.dir) / "manifest.json").read_text())["schema"]
    assert (
        text
        == "usp-schema v1\nname python.v1\n"
        "field loss metric f32 1 -\nfield regime flag u64 1 -\nfield rho digest f32 3 -\n"
    )
    verified(run.dir)
    with api.Run(fields=FIELDS) as declared:
        declared.emit(1, {"loss": 2.5, "rho": [0.5] * 4})
    logged = [[e for e in usp("log", r.dir) if e["kind"] == "STEP"] for r in (run, declared)]
    import hashlib

    digest = hashlib.sha256(np.full(3, 0.5).astype("<f8").tobytes()).hexdigest()
    assert digest in json.dumps(logged[0][0]), logged[0][0]


def test_one_record_alone() -> None:
    with api.Run(fields=api.fields(loss="metric")) as run:
        run.emit(5, {"loss": 1.0})
    assert verified(run.dir)["stored"] == 1


def test_no_record_at_all() -> None:
    with api.Run(fields=FIELDS) as run:
        pass
    assert verified(run.dir)["emitted"] == 0
    with api.Run(fields=api.fields(loss="metric")) as lazy:
        pass
    assert lazy.summary is not None and lazy.summary["emitted"] == 0 and lazy.summary.complete
    assert not Path(lazy.dir).exists()


def test_an_exception_ends_it_as_failed() -> None:
    with pytest.raises(ZeroDivisionError), api.Run(fields=FIELDS) as run:
        run.emit(1, values(1))
        _ = 1 / 0
    assert verified(run.dir, end="failed")["stored"] == 1
    assert run.summary is not None and run.summary["status"] == "failed" and run.summary.complete


def test_after_the_end() -> None:
    run = api.Run(fields=FIELDS)
    emit = run.emit
    emit(1, values(1))
    assert run.close() is run.close()
    for call in (emit, run.emit):
        with pytest.raises(api.ClosedError):
            call(2, values(2))
    with pytest.raises(api.ClosedError):
        run.snapshot(2, {})
    assert verified(run.dir)["stored"] == 1


def test_two_at_once() -> None:
    with api.Run(fields=FIELDS) as a, api.Run(fields=FIELDS) as b:
        for step in range(1000):
            a.emit(step, values(step))
            if step % 2:
                b.emit(step, values(step))
    assert verified(a.dir)["stored"] == 1000 and verified(b.dir)["stored"] == 500 and a.id != b.id


def test_what_is_wrong_with_a_record() -> None:
    with api.Run(fields=FIELDS) as run:
        run.emit(5, {"loss": math.nan, "rho": [math.nan, -0.0, math.inf, 1e-320]})
        for step, bad, error, says in [
            (6, {"loss": 1.0}, api.FieldError, "rho"),
            (6, {**values(6), "more": 1.0}, api.FieldError, "more"),
            (6, {**values(6), "rho": [1.0] * 3}, api.FieldError, "rho"),
            (6, {**values(6), "loss": "high"}, api.FieldError, "loss"),
            (6, {**values(6), "loss": 1 + 2j}, api.FieldError, "loss"),
            (6, [1.0], api.FieldError, "mapping"),
            (5, values(5), api.StepError, "5"),
            (4, values(4), api.StepError, "4"),
            (-1, values(4), api.StepError, "-1"),
        ]:
            with pytest.raises(error, match=says):
                run.emit(step, bad)
        run.emit(6, values(6), 1_700_000_000_000_000_000)
        run.emit(7, values(7), time=1_700_000_001_000_000_000)
        assert run.emitted == 3
    assert verified(run.dir)["stored"] == 3
    assert usp("show", run.dir)["last_time"] == "2023-11-14T22:13:21Z"


def test_what_is_wrong_with_the_first_record() -> None:
    with api.Run(fields=api.fields(loss="metric", rho="digest")) as run:
        for bad in ({"loss": 1.0}, {"loss": 1.0, "rho": [1.0], "more": 1}, {"loss": "x", "rho": [1.0]}, 3.0):
            with pytest.raises(api.FieldError):
                run.emit(1, bad)
        with pytest.raises(api.StepError):
            run.emit(-1, {"loss": 1.0, "rho": [1.0]})
        run.emit(1, {"loss": 1.0, "rho": [1.0]})
    assert verified(run.dir)["stored"] == 1


def test_settings_of_a_file_and_of_arguments(tmp_path: Path, ring_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my.toml").write_text("[ring]\nslots = 128\n[digest]\ninterval = 10\n[snapshot]\ninterval = 4\n")
    with api.Run("my.toml", fields=FIELDS, dir=tmp_path / "there") as run:
        os.chdir("/")  # what was relative stays where it was
        (ring,) = ring_dir.glob("*.ring")
        assert ring.stat().st_size < 1 << 16
        assert [step for step in range(10) if run.should_save(step)] == [0, 4, 8]
        for step in range(100):
            run.emit(step, values(step))
        assert run.snapshot(8, {}) and [step for step in range(13) if run.should_save(step)] == [12]
    os.chdir(tmp_path)
    found = verified(tmp_path / "there" / run.id)
    assert found["stored"] == 100 and found["digests"] == 10
    with api.Run("my.toml", fields=FIELDS, save_interval_steps=0) as never:
        assert not any(never.should_save(step) for step in range(10))
    for bad in (
        {"queue": 0},
        {"max_to_keep": -1},
        {"save_interval_steps": True},
        {"staging_areas": 1.5},
        {"snapshot_capacity": "1"},
    ):
        with pytest.raises(api.ConfigError, match=next(iter(bad))):
            api.Run(fields=FIELDS, **bad)
    with pytest.raises(api.ConfigError, match="producer"):
        api.Run(fields=FIELDS, producer={"a": object()})
    with pytest.raises(api.ConfigError, match="producer"):
        api.Run(fields=FIELDS, producer={"a": "x" * 70_000})
    assert list(ring_dir.iterdir()) == []


def test_a_settings_file_with_a_fault(tmp_path: Path, ring_dir: Path) -> None:
    (tmp_path / "usp.toml").write_text("[ring]\nslotz = 128\n")
    with pytest.raises(api.ConfigError, match=r'usp\.toml:2:1: unknown key "slotz" in \[ring\]; did you mean "slots"'):
        api.Run(fields=FIELDS)
    assert list(ring_dir.iterdir()) == []


def test_without_a_recorder(usp_bin: str, ring_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = tmp_path / "what $HOME's runs are"
    with monkeypatch.context() as patch:
        patch.delenv("USP_BIN")
        patch.setenv("PATH", "/nowhere")
        patch.setenv("USP_RING_SLOTS", "64")
        with pytest.warns(api.NoRecorderWarning, match="go install"):
            run = api.Run(fields=FIELDS, dir=runs)
        for step in range(100):
            run.emit(step, values(step))
        assert run.lost() == 36
        with pytest.warns(api.IncompleteWarning, match=r"36 of 100 .* waits in .*\.ring; to store it: usp ") as told:
            summary = run.close()
    assert not summary.complete and (summary["emitted"], summary["stored"], summary["lost"]) == (100, 0, 36)
    (ring,) = ring_dir.glob("*.ring")
    named = re.search(r"to store it: usp (.*) \(there is no recorder\)$", str(told[0].message))
    assert named is not None, told[0].message
    words = subprocess.check_output(["sh", "-c", f"printf '%s\\n' {named[1]}"], text=True).splitlines()
    assert words == ["-d", str(runs), "record", str(ring)], told[0].message
    later = usp(*words)
    assert later["emitted"] == 100 and later["stored"] + later["lost"] == 100 and later["stored"] in (63, 64)
    verified(run.dir)


def test_recorded_by_somebody_else(usp_bin: str, ring_dir: Path) -> None:
    import subprocess

    with api.Run(fields=FIELDS, record="outside", drain_timeout=20) as run:
        (ring,) = ring_dir.glob("*.ring")
        with subprocess.Popen([usp_bin, "record", str(ring)], stdout=subprocess.PIPE) as theirs:
            for step in range(1000):
                run.emit(step, values(step))
            assert run.close().complete
            said, _ = theirs.communicate(timeout=60)
    assert theirs.returncode == 0 and b"1000 emitted, 1000 stored, 0 lost" in said, said
    assert verified(run.dir)["stored"] == 1000


def test_recorded_by_nobody(ring_dir: Path, run_dir: Path) -> None:
    with api.Run(fields=FIELDS, record=False) as run:
        assert len(list(ring_dir.glob("*.ring"))) == 1
        run.emit(1, values(1))
    assert list(ring_dir.iterdir()) == [] and not run_dir.exists() and run.emitted == 1


def test_one_that_is_forgotten_ends_as_failed() -> None:
    run = api.Run(fields=FIELDS)
    run.emit(1, values(1))
    path = run.dir
    with pytest.warns(ResourceWarning, match="never closed"):
        del run
        gc.collect()
    assert closed(Path(path)) and verified(path, end="failed")["stored"] == 1


def test_a_recorder_that_cannot_begin(
    tmp_path: Path, ring_dir: Path, usp_bin: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(api.RecorderError, match="not a directory"):
        api.Run(fields=FIELDS, dir=tmp_path / "file")
    assert list(ring_dir.iterdir()) == []
    broken = tmp_path / "usp"  # one whose recorder fails at once
    broken.write_text(f'#!/bin/sh\ncase "$*" in *record*) echo "out of luck" >&2; exit 3;; esac\nexec {usp_bin} "$@"\n')
    broken.chmod(0o755)
    monkeypatch.setenv("USP_BIN", str(broken))
    with pytest.raises(api.RecorderError, match="the recorder ended: out of luck"):
        api.Run(fields=FIELDS)
    lazy = api.Run(fields=api.fields(loss="metric"), snapshot_capacity=0)
    with pytest.raises(api.RecorderError, match="out of luck"):
        lazy.emit(1, {"loss": 1.0})
    broken.write_text(f'#!/bin/sh\nexec {usp_bin} "$@"\n')
    with pytest.raises(api.RecorderError, match="out of luck"):
        lazy.emit(1, {"loss": 1.0})  # it is not tried again at each step of a loop that catches this
    assert not lazy.close().complete or lazy.emitted == 0
    assert list(ring_dir.iterdir()) == []
    monkeypatch.setenv("USP_BIN", "/nonexistent/usp")
    with pytest.raises(api.RecorderError, match="USP_BIN"):
        api.Run(fields=FIELDS)


def test_what_the_recorder_says_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USP_NONSENSE", "1")
    said = io.StringIO()
    with api.Run(fields=FIELDS, stderr=said) as run:
        run.emit(1, values(1))
    assert said.getvalue().count('unknown environment variable "USP_NONSENSE"') == 1


def test_from_several_threads() -> None:
    import threading

    with api.Run(fields=FIELDS) as run:
        lock, taken = threading.Lock(), iter(range(4000))

        def work() -> None:
            while True:
                with lock:
                    step = next(taken, None)
                    if step is None:
                        return
                    run.emit(step, values(step))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert verified(run.dir)["stored"] == 4000


def test_nothing_is_left_of_many_runs() -> None:
    """Threads, descriptors and children of runs that have ended are gone."""
    import threading

    def held() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    with api.Run(fields=FIELDS) as run:
        run.emit(1, values(1))
    until(lambda: threading.active_count() == 1)
    before = held()
    for _ in range(5):
        with api.Run(fields=FIELDS) as run:
            run.emit(1, values(1))
    until(lambda: held() == before)
    run = api.Run(fields=FIELDS)
    run.emit(1, values(1))
    assert run._session is not None
    session = weakref.ref(run._session)
    run.close()
    del run
    gc.collect()
    assert session() is None
