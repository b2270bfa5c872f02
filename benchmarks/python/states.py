"""What can befall a recorder during a benchmark: that it is stopped, killed now and then, gone, or has a full disk.

A state is brought about by signals to the recorder's process, which is found through the ring, and by files on a small
file system in memory. Each knows what to do before blocks of steps with usp and without.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loggers import caught_up, consumer

SMALL_RING = str(1 << 12)  # slots; so that it is soon full where nobody empties it
DISK = "64m"


class Well:
    """The recorder runs. Blocks without usp begin when it has stored everything, and it stands still in them."""

    words = "running"
    usp = True  # whether usp is there at all
    ways: tuple[str, ...] = ("t1", "scan", "t0", "packed")  # that it is for
    pairs = 16
    longer = 1  # blocks, to the usual length
    env: dict[str, str] = {}

    def __init__(self, run: Any, where: Path) -> None:
        self.run, self.where = run, where
        self.kills = 0

    def begin(self) -> None:
        """After warming up, before the first block."""

    def without(self) -> None:
        """Before a block without usp."""
        if not caught_up(self.run):
            raise SystemExit("the recorder has not caught up in 10 s")
        self.signal(signal.SIGSTOP)

    def with_usp(self) -> None:
        """Before a block with usp."""
        self.signal(signal.SIGCONT)

    def counted(self) -> None:
        """Before the first step of a block with usp that counts."""

    def end(self) -> None:
        """After the last block: lets the recorder finish."""
        self.signal(signal.SIGCONT)

    def abandon(self) -> None:
        """After an error: leaves nothing standing still, and nothing running."""
        self.signal(signal.SIGCONT)

    def signal(self, number: int) -> bool:
        """Sends the recorder a signal. Returns whether there is a recorder."""
        pid = consumer(self.run).pid
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if self.run.id.encode() not in file.read():
                    return False  # no longer the recorder's
            os.kill(pid, number)
        except OSError:
            return False
        return True


class Stopped(Well):
    """SIGSTOP before the first block, and SIGCONT after the last one. The ring is full for nearly all the time."""

    words = "stopped"
    env = {"USP_RING_SLOTS": SMALL_RING}

    def begin(self) -> None:
        if not self.signal(signal.SIGSTOP):
            raise SystemExit("there is no recorder to be stopped")

    def without(self) -> None:
        pass

    def with_usp(self) -> None:
        pass


class Killed(Well):
    """SIGKILL at the first step that counts of each block with usp, which starts another recorder in that block."""

    words = "killed every 0.9 s, started again"
    pairs = 4
    longer = 4

    def without(self) -> None:
        until_there(self)
        self.signal(signal.SIGSTOP)

    def counted(self) -> None:
        kill(self)


def until_there(state: Well) -> None:
    """Waits for another recorder, which has stored everything."""
    deadline = time.monotonic() + 10
    while not (state.signal(0) and caught_up(state.run, 0.5)):
        if time.monotonic() > deadline:
            raise SystemExit("the recorder was not started again in 10 s")
        time.sleep(0.05)


def kill(state: Well) -> None:
    """Kills the recorder."""
    deadline = time.monotonic() + 10
    while not state.signal(signal.SIGKILL) and time.monotonic() < deadline:
        time.sleep(0.05)
    state.kills += 1


class Once(Well):
    """SIGKILL at the first step that counts of the second block with usp: another one records the rest, and all others."""

    words = "killed once, started again"
    blocks = 0  # with usp, so far

    def without(self) -> None:
        if self.blocks == 2:
            until_there(self)
        super().without()

    def with_usp(self) -> None:
        self.blocks += 1
        super().with_usp()

    def counted(self) -> None:
        if self.blocks == 2:
            kill(self)


class Gone(Well):
    """A recorder that somebody else started, killed before the first block; nobody starts another."""

    words = "killed, nobody starts another"
    env = {"USP_RING_SLOTS": SMALL_RING}
    process: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        command = [os.environ["USP_BIN"], "-d", str(self.where), "record", self.run.id]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        if not caught_up(self.run):
            raise SystemExit("the recorder has not caught up in 10 s")
        self.process.kill()
        self.process.wait()
        self.kills += 1

    def without(self) -> None:
        pass

    def with_usp(self) -> None:
        pass

    def end(self) -> None:
        command = [os.environ["USP_BIN"], "-d", str(self.where), "record", self.run.id]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


class Full(Well):
    """The file system of the run directory has no space from before the first block until after the last one."""

    words = "on a full disk"
    # Segments are preallocated, and would hold a while what is recorded; smaller ones would make for smaller commits.
    env = {"USP_RECORDER_SEGMENT_SIZE": "1MiB"}
    ballast: Path | None = None

    def begin(self) -> None:
        if not caught_up(self.run):
            raise SystemExit("the recorder has not caught up in 10 s")
        self.ballast = self.where / "ballast"
        with open(self.ballast, "wb", buffering=0) as file:
            size = 1 << 20
            while size:
                try:
                    file.write(bytes(size))
                except OSError:
                    size >>= 1

    def without(self) -> None:
        self.signal(signal.SIGSTOP)

    def end(self) -> None:
        if not consumer(self.run).fault:
            raise SystemExit("the recorder has not noticed that its disk is full")
        assert self.ballast is not None
        self.ballast.unlink()
        super().end()


class Control(Well):
    """Not usp at all, in either block: how far apart two equal things are measured here."""

    words = "(control: neither block has usp)"
    usp = False

    def begin(self) -> None:
        pass

    without = with_usp = end = abandon = begin


class Neighbour(Control):
    """Not usp: in every second block another process takes as much of a processor as the recorder does, with the lowest
    priority there is, and writes nothing. What is measured is what it costs that a third party uses two processors."""

    words = "(no usp; beside a process of the lowest priority that takes 3 % of a core)"
    script = "compute"
    process: subprocess.Popen[bytes] | None = None

    def begin(self) -> None:
        command = [sys.executable, "-c", NEIGHBOUR + NEIGHBOURS[self.script], str(self.where)]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        time.sleep(0.5)
        if self.process.poll() is not None:
            raise SystemExit("there is no neighbour: sessions have no priority here, or this process may not lower it")

    def without(self) -> None:
        self.signal_it(signal.SIGSTOP)

    def with_usp(self) -> None:
        self.signal_it(signal.SIGCONT)

    def signal_it(self, number: int) -> None:
        """Sends it a signal, if it is still there."""
        assert self.process is not None
        if self.process.poll() is not None:
            raise SystemExit(f"the neighbour has ended, with exit code {self.process.returncode}")
        self.process.send_signal(number)

    def end(self) -> None:
        self.signal_it(signal.SIGKILL)
        assert self.process is not None
        self.process.wait()

    def abandon(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


class Writer(Neighbour):
    """Not usp: the other process makes durable as many bytes as usp does of this loop, as often, in two files, and does no
    more: it reads no ring, and hashes nothing. What is measured is what it costs at least to store it."""

    words = "(no usp; beside a process of the lowest priority that makes as many bytes durable, as often)"
    ways = ("t1", "scan")  # whose steps it writes as many bytes for
    script = "write"


NEIGHBOUR = """
import os, sys, time
with open("/proc/self/autogroup", "wb", buffering=0) as file:
    file.write(b"19")
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
"""

NEIGHBOURS = {
    "compute": """
while True:
    time.sleep(0.025)
    end = time.thread_time_ns() + 750_000
    while time.thread_time_ns() < end:
        pass
""",
    "write": """
SIZE, PIECE = 64 << 20, bytes(range(256)) * 64
files = []
for name, pieces in ("telemetry", 3), ("log", 9):  # 48 KiB and 144 KiB, of the steps of 50 ms
    fd = os.open(os.path.join(sys.argv[1], "neighbour-" + name), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.posix_fallocate(fd, 0, SIZE)
    files.append((fd, pieces))
at = [0, 0]
while True:
    time.sleep(0.05)
    for i, (fd, pieces) in enumerate(files):
        for _ in range(pieces):
            os.pwrite(fd, PIECE, at[i])
            at[i] += len(PIECE)
        os.fdatasync(fd)
        os.posix_fadvise(fd, at[i] - pieces * len(PIECE), pieces * len(PIECE), os.POSIX_FADV_DONTNEED)
        if at[i] + (1 << 20) > SIZE:
            at[i] = 0
""",
}


STATES: dict[str, type[Well]] = {
    "control": Control, "neighbour": Neighbour, "writer": Writer, "running": Well, "stopped": Stopped, "killed": Killed,
    "once": Once, "gone": Gone, "full": Full,
}  # fmt: skip


@contextlib.contextmanager
def small_disk(where: Path) -> Iterator[Path]:
    """A small file system in memory, under where. Raises PermissionError if this process may not mount one."""
    disk = where / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"nosuid,nodev,size={DISK}", "usp-bench", str(disk)]
    done = subprocess.run(mount, capture_output=True, text=True)
    if done.returncode:
        raise PermissionError(f"a full disk cannot be tried: {done.stderr.strip()}")
    try:
        yield disk
    finally:
        done = subprocess.run(["umount", "--lazy", str(disk)], capture_output=True, text=True)
        if done.returncode:
            print(done.stderr.strip(), file=sys.stderr)
