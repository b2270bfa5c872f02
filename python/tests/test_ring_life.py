"""How a ring is made, what is in its way, and what becomes of it when processes fork and die."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ringreader
from rings import RUN, SCHEMA, child, locked, make, native, payload, whole  # noqa: F401

from usp import _ring, _ringfile
from usp._errors import ForkedError, RingError
from usp._ring import Ring

# Making it


def test_second_producer_is_refused(ring_dir: Path, native: bool) -> None:
    ring = make(ring_dir, native)
    with pytest.raises(RingError, match=f"producer that is alive .*{RUN}.*pid {os.getpid()}.*two producers"):
        make(ring_dir, native)
    other = child(
        "import sys; from usp._ring import Ring; from usp._schema import *\n"
        "try: Ring(sys.argv[1], 'x', Schema('a', fields(a=('metric', 1))), b'{}')\n"
        "except OSError as e: print('ready'); print(e.errno, e)\n", ring.path,
    )  # fmt: skip
    assert other.stdout and other.stdin
    said = other.stdout.read()
    other.stdout.close(), other.stdin.close(), other.wait()
    assert said.startswith(f"{errno.EEXIST} ring ") and "alive" in said and other.returncode == 0
    assert ring.emit(payload(0)) == 0 and locked(ring.path)
    ring.close()
    with pytest.raises(RingError, match="left by a producer that is gone"):
        make(ring_dir, native)
    Path(ring.path).write_text("something else")
    with pytest.raises(RingError, match="not a usable ring"):
        make(ring_dir, native)
    assert sorted(os.listdir(ring_dir)) == ["a.ring"]


def test_name_taken_at_the_last_moment(ring_dir: Path, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who links first has the path; the other leaves nothing, and does not take the name away."""
    first = make(ring_dir, native)
    monkeypatch.setattr(_ring.os.path, "lexists", lambda _: False)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(RingError, match="alive"):
        make(ring_dir, native, staging_areas=2, staging_capacity=100)
    assert len(os.listdir("/proc/self/fd")) == before
    assert os.listdir(ring_dir) == ["a.ring"] and locked(first.path)
    first.close()


def test_staging_files_of_a_ring_that_is_gone_are_replaced(ring_dir: Path, native: bool) -> None:
    (ring_dir / "a.ring.stage0").write_text("old")
    ring = make(ring_dir, native, staging_areas=1, staging_capacity=10)
    assert ring.stage(1, 1, 3, lambda v: v.__setitem__(slice(None), b"new"))
    ring.close()
    assert ringreader.read(ring.path).staged[0]["content"] == b"new".hex()


@pytest.mark.parametrize(
    "more",
    [
        {"slots": 7}, {"slots": 1}, {"slots": 1 << 25}, {"staging_areas": 1}, {"staging_capacity": 5},
        {"staging_areas": 17, "staging_capacity": 5},
        {"staging_areas": 1, "staging_capacity": 1 << 41}, {"meta": b"x" * 65537}, {"generation": -1},
        {"generation": 1 << 32},
        {"schema": SimpleNamespace(text=b"", payload_len=12, fields=())}, {"schema": SimpleNamespace(text=b"",
        payload_len=1 << 20, fields=())},
    ],
    ids=str,
)  # fmt: skip
def test_what_no_ring_can_be(ring_dir: Path, native: bool, more: dict[str, Any]) -> None:
    with pytest.raises(RingError):
        make(ring_dir, native, **more)
    assert os.listdir(ring_dir) == []


@pytest.mark.parametrize("run", ["x" * 33, "a\0b"])
def test_run_id(ring_dir: Path, run: str) -> None:
    with pytest.raises(RingError, match="run id"):
        Ring(ring_dir / "a", run, SCHEMA, b"", slots=8)


def no_room(directory: Path, native: bool, limit: int, **more: Any) -> None:
    """Making a ring there fails, says where and how much, and leaves nothing."""
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(RingError, match="no room for the .* bytes") as e:
        make(directory, native, **more)
    assert str(directory) in str(e.value) and "USP_RING_DIR" in str(e.value)
    assert e.value.errno in (errno.ENOSPC, errno.EFBIG)
    assert os.listdir(directory) == [] and len(os.listdir("/proc/self/fd")) == before
    gc.collect()
    free = os.statvfs(directory)
    assert free.f_bavail * free.f_frsize >= limit, "memory is still taken"


def test_full_directory(tmp_path: Path, native: bool) -> None:
    """A file system of one megabyte; also one whose free space is a lie, so that reserving fails half way."""
    where = tmp_path / "small"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "usp-test", str(where)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True)
    except OSError as e:
        pytest.skip(f"SKIPPED: no tmpfs of one megabyte can be mounted here: {e}")
    if done.returncode:
        pytest.skip(f"SKIPPED: no tmpfs of one megabyte can be mounted here: {done.stderr.strip()}")
    try:
        room = (1 << 20) - 65536
        with pytest.MonkeyPatch.context() as m:
            m.setattr(_ringfile.os, "posix_fallocate", lambda *_: pytest.fail("it fills what there is before it fails"))
            no_room(where, native, room, slots=1 << 20)
        no_room(where, native, room, staging_areas=2, staging_capacity=600_000)
        with pytest.MonkeyPatch.context() as m:
            plenty = SimpleNamespace(f_blocks=1 << 40, f_bavail=1 << 40, f_frsize=4096)
            m.setattr(_ringfile.os, "fstatvfs", lambda _: plenty)
            no_room(where, native, room, slots=1 << 20)
        make(where, native, staging_areas=1, staging_capacity=600_000).close()
    finally:
        subprocess.run(["umount", str(where)], check=True)


def test_limit_on_files(ring_dir: Path, native: bool) -> None:
    """The same by a limit of the process, which needs no rights."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        no_room(ring_dir, native, 0, slots=1 << 20)
        no_room(ring_dir, native, 0, staging_areas=2, staging_capacity=2 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)


def test_killed_while_it_is_made(ring_dir: Path) -> None:
    """A process that dies before the ring has its name leaves nothing behind."""
    code = (
        "import os, sys; from usp import _ring, _ringfile; from usp._schema import *\n"
        "def die(self): print('ready', flush=True); os.kill(os.getpid(), 9)\n"
        "_ringfile.NewFile.link = die\n"
        "schema = Schema('a', fields(a=('metric', 1)))\n"
        "_ring.Ring(sys.argv[1], 'x', schema, b'{}', staging_areas=2, staging_capacity=1000)\n"
    )
    p = child(code, str(ring_dir / "a.ring"))
    p.communicate()
    assert p.returncode == -9
    assert os.listdir(ring_dir) == []


def test_without_unnamed_files(ring_dir: Path, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system has none, temporary names serve, and are gone afterwards."""
    real = os.open

    def refuse(path: str, flags: int, *more: Any, **named: Any) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "not here", path)
        return real(path, flags, *more, **named)

    monkeypatch.setattr(_ringfile.os, "open", refuse)
    (ring_dir / f".a.ring.tmp-{os.getpid()}-0").write_text("in the way")
    ring = make(ring_dir, native, staging_areas=1, staging_capacity=10)
    with pytest.raises(RingError, match="alive"):
        make(ring_dir, native, staging_areas=1, staging_capacity=10)
    assert sorted(os.listdir(ring_dir)) == [f".a.ring.tmp-{os.getpid()}-0", "a.ring", "a.ring.stage0"]
    assert {os.stat(ring_dir / n).st_mode & 0o777 for n in ("a.ring", "a.ring.stage0")} == {0o600}
    ring.close()


def test_no_directory(ring_dir: Path, native: bool) -> None:
    with pytest.raises(RingError, match="nowhere"):
        Ring(ring_dir / "nowhere" / "a.ring", RUN, SCHEMA, b"", native=native)


def test_no_order_of_stores(ring_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere than on x86-64 pure Python must not try."""
    monkeypatch.setattr(_ring, "_native", None)
    monkeypatch.setattr(_ring, "_why_not_native", "it was not built")
    with pytest.raises(RingError, match="it was not built"):
        make(ring_dir, True)
    monkeypatch.setattr(_ring.platform, "machine", lambda: "aarch64")
    with pytest.raises(RingError, match=r"aarch64.*orders.*it was not built"):
        Ring(ring_dir / "a.ring", RUN, SCHEMA, b"")
    assert os.listdir(ring_dir) == []


def test_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USP_RING_DIR", str(tmp_path / "named" / "one"))
    assert _ring.default_dir() == str(tmp_path / "named" / "one")
    _ring.prepare_dir(_ring.default_dir())
    _ring.prepare_dir(_ring.default_dir())
    assert os.stat(_ring.default_dir()).st_mode & 0o777 == 0o700
    monkeypatch.delenv("USP_RING_DIR")
    user = f"usp-{os.getuid()}"
    if os.path.isdir("/dev/shm"):
        assert _ring.default_dir() == f"/dev/shm/{user}"
    monkeypatch.setattr(_ringfile, "_usable", lambda parent, path: parent == str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert _ring.default_dir() == str(tmp_path / "usp")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert os.path.basename(_ring.default_dir()) == user
    monkeypatch.undo()
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "file").touch()
    for name, what in (("open", "chmod 700"), ("file", "not a directory"), ("file/below", "File exists")):
        with pytest.raises(RingError, match=what):
            _ring.prepare_dir(str(tmp_path / name))
    assert not _ringfile._usable(str(tmp_path), str(tmp_path / "open")) and _ringfile._usable(
        str(tmp_path), str(tmp_path / "none")
    )
    assert _ring.ring_path("/d", "run") == "/d/run.ring"


# The end of it


def test_lock_and_state(ring_dir: Path, native: bool) -> None:
    ring = make(ring_dir, native, staging_areas=1, staging_capacity=10)
    assert locked(ring.path) and locked(ring.path + ".stage0") and ringreader.read(ring.path).state == "open"
    view = open(ring.path, "r+b")
    m = mmap.mmap(view.fileno(), 0)
    struct.pack_into("<11Q", m, 1536, *range(1, 12))
    assert ring.consumer() == tuple(range(1, 12)) and ring.consumer().lost == 4
    before = m[1152:1160]
    ring.beat()
    assert m[1152:1160] != before
    ring.finish(False)
    assert not locked(ring.path) and not locked(ring.path + ".stage0") and ringreader.read(ring.path).state == "failed"
    struct.pack_into("<Q", m, 1536, 2)
    assert ring.consumer().phase == 2
    ring.close()
    ring.beat()
    assert ring.consumer() == (0,) * 11
    m.close()
    view.close()
    assert sorted(os.listdir(ring_dir)) == ["a.ring", "a.ring.stage0"]


def test_descriptors_are_given_back(ring_dir: Path, native: bool) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(300):  # more than there are handles
        ring = make(ring_dir, native, staging_areas=1, staging_capacity=10)
        ring.emitter(lambda *_: None)(1, {"a": 1.0})
        ring.close()
        os.unlink(ring.path)
    assert len(os.listdir("/proc/self/fd")) == before


KILLED = """
import sys; from usp._ring import Ring; from usp._schema import *
import struct
path, native, how = sys.argv[1], sys.argv[2] == "True", sys.argv[3]
ring = Ring(path, "killed", Schema("a", fields(a=("metric", 1))), b"{}", slots=64, native=native)
def payload(n): return struct.pack("<3Q", *(((n + 1) * 0x9E3779B97F4A7C15 ^ i << 32) & (1 << 64) - 1 for i in range(3)))
ring.emit(payload(0))
print("ready", flush=True)
while True:
    n = ring.position
    ring.emit_block(b"".join(map(payload, range(n, n + 16)))) if how == "block" else ring.emit(payload(n))
"""


@pytest.mark.parametrize("how", ["emit", "block"])
def test_killed_writer(ring_dir: Path, native: bool, how: str) -> None:
    """Killed at any moment, at most the record in the making is lost, beside what was overrun."""
    times = 60 if os.environ.get("TORTURE") else 6
    for i in range(times):
        path = ring_dir / f"{i}.ring"
        p = child(KILLED, str(path), str(native), how)
        until = 100 + 977 * i % 5000
        with open(path, "rb") as f:
            while int.from_bytes(os.pread(f.fileno(), 8, 1024), "little") < until:
                pass
        p.kill()
        p.wait()
        assert p.stdout and p.stdin
        p.stdout.close(), p.stdin.close()
        assert not locked(path)
        r = ringreader.read(path)
        whole(r)
        assert r.state == "open" and r.position <= r.produced <= r.position + 1 and len(r.records) >= 63
        torn = [(a, b) for a, b, why in r.lost if why == "torn"]
        assert torn in ([], [(r.produced - 1, r.produced)])
        path.unlink()


# Fork

# Python and jax warn of forks in programs that have threads. That it is no worse than they say is tested here.
FORK = pytest.mark.filterwarnings("ignore:.*fork.*")


@FORK
def test_forked_child(ring_dir: Path, native: bool) -> None:
    ring = make(ring_dir, native, slots=1 << 16, staging_areas=1, staging_capacity=10)
    emit = ring.emitter(lambda *_: None)
    emit(1, {"a": 1.0})
    mine = {fd for fd, _, _ in ring._files[0]._copies} | {fd for fd, _, _ in ring._files[1]._copies}
    assert len(mine) == 4
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = []
        try:
            for call in (
                lambda: ring.emit(payload(0)), lambda: ring.emit_block(payload(0)), lambda: emit(2, {"a": 1.0}),
                lambda: ring.advance(7),
            ):  # fmt: skip
                try:
                    call()
                except ForkedError:
                    said.append("forked")
            said.append(str(ring.stage(1, 1, 1, lambda v: None)))
            said.append(str(ring.can_stage()))
            said.append(str(any(ring.consumer())))
            said += [os.readlink(f"/proc/self/fd/{fd}") for fd in mine]
            with open("/proc/self/maps") as f:
                said.append(str(ring.path in f.read()))
            hole = [mmap.mmap(-1, 1 << 20) for _ in range(64)]  # takes the place of what is not mapped here
            ring.beat()
            ring.finish(True)
            ring.close()
            ring.forked()
            del ring, emit
            gc.collect()
            for m in hole:
                m[:: mmap.PAGESIZE] = b"x" * (len(m) // mmap.PAGESIZE)
            os.write(into, ",".join(said).encode())
        finally:
            os._exit(0)
    os.close(into)
    with os.fdopen(out, "rb") as f:
        said = f.read().decode()
    assert os.waitpid(pid, 0)[1] == 0
    assert said == ",".join(["forked"] * 4 + ["False"] * 3 + ["/dev/null"] * 4 + ["False"])
    assert locked(ring.path) and locked(ring.path + ".stage0")
    assert ring.emit(payload(1)) == 1 and ring.stage(1, 1, 1, lambda v: None)
    ring.finish(True)
    r = ringreader.read(ring.path)
    assert r.state == "closed" and r.produced == 2 and len(r.staged) == 1
    ring.close()


@FORK
def test_fork_while_others_emit(ring_dir: Path, native: bool) -> None:
    """A fork in the middle of another thread's record: neither process hangs or says something wrong."""
    ring = make(ring_dir, native, slots=1 << 12)
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            ring.emit_block(payload(0) * 4096)  # so long that the extension lets go of the interpreter's lock

    threads = [threading.Thread(target=work) for _ in range(2)]
    for t in threads:
        t.start()
    try:
        for _ in range(30):
            pid = os.fork()
            if pid == 0:
                code = 1
                signal.alarm(20)  # rather dead than hanging
                try:
                    ring.emit(payload(0))
                except ForkedError:
                    code = 0
                finally:
                    os._exit(code)
            assert os.waitpid(pid, 0)[1] == 0
    finally:
        stop.set()
        for t in threads:
            t.join()
    ring.finish(True)
    r = ringreader.read(ring.path)
    assert len(r.records) == 1 << 12 and all(why == "overrun" for _, _, why in r.lost)
    ring.close()


FORKS = """
import os, signal, sys, time; from usp._ring import Ring; from usp._schema import *
schema = Schema("a", fields(a=("metric", 1)))
ring = Ring(sys.argv[1], "r", schema, b"", slots=64, native=sys.argv[2] == "True", staging_areas=1, staging_capacity=9)
out, into = os.pipe()
pid = os.fork()
if pid == 0:
    os.write(into, b"x")  # the hook has run
    signal.pause()
os.read(out, 1)
print("ready", flush=True)
print(pid, flush=True)
signal.pause()
"""


def test_parent_killed_while_its_child_lives(ring_dir: Path, native: bool) -> None:
    """The child keeps neither descriptor nor mapping, so that the recorder sees that the producer is gone."""
    path = ring_dir / "a.ring"
    p = child(FORKS, str(path), str(native))
    assert p.stdout and p.stdin
    grandchild = int(p.stdout.readline())
    try:
        assert locked(path)
        p.kill()
        p.wait()
        os.kill(grandchild, 0)
        assert not locked(path) and not locked(f"{path}.stage0")
    finally:
        os.kill(grandchild, signal.SIGKILL)
        p.stdout.close(), p.stdin.close()


ENDS = """
import os, sys, gc; from usp._ring import Ring; from usp._schema import *
schema = Schema("a", fields(a=("metric", 1)))
ring = Ring(sys.argv[1], "ends", schema, b"{}", native=sys.argv[2] == "True", slots=1 << 16)
pid = os.fork()
if pid == 0:
    import mmap
    fill = [mmap.mmap(-1, 1 << 20) for _ in range(64)]
    print("ready", flush=True)
    sys.exit(7)  # the ordinary way, through the end of the interpreter
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_child_ends_in_the_ordinary_way(ring_dir: Path, native: bool) -> None:
    p = child(ENDS, str(ring_dir / "a.ring"), str(native))
    p.communicate()
    assert p.returncode == 7


def test_child_of_exec_inherits_nothing(ring_dir: Path, native: bool) -> None:
    ring = make(ring_dir, native)
    sleeper = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, close_fds=False
    )
    ring.close()
    assert not locked(ring.path)
    sleeper.communicate()
