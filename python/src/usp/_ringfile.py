"""The files of a ring: where they lie, how one is made so that it is complete and locked before it has its name.

A name is taken only by a file whose memory is all reserved, so that no later write can fault, and two producers are
never on one path. On an error nothing is left behind. The layout is that of doc/format/ring.md.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import stat
import struct
import tempfile
import time
import zlib
from dataclasses import dataclass

from usp._errors import RingError

PAGE = 4096
OFF_POSITION = 1024
OFF_HEARTBEAT = 1152
OFF_STATE = 1280
OFF_DROPS = 1408
OFF_CONSUMER = 1536
OFF_TEXT = 2048
CONSUMER_WORDS = 11
STATE_OPEN, STATE_CLOSED, STATE_FAILED = 1, 2, 3
SLOT_HEADER = 16

AREA_HEADER = 4096
AREA_STATE = 128
AREA_WORDS = 256
AREA_TICKET = 272
AREA_FREE, AREA_FILLING, AREA_READY = 0, 1, 2

MAX_PAYLOAD = (1 << 20) - 4096
MAX_TEXT = 64 << 10  # of schema and of metadata
MAX_RUN_ID = 32
MAX_SLOTS = 1 << 24
MAX_AREAS = 16
MAX_CAPACITY = 1 << 40
MAX_RING = 1 << 38

_STEP = 64 << 20  # tmpfs gives up a whole fallocate on any signal
_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE, Linux 5.14


@dataclass(frozen=True)
class Layout:
    """What a ring's header says, and where things lie."""

    run_id: bytes
    schema: bytes
    meta: bytes
    payload_len: int
    slots: int
    generation: int = 0
    staging_areas: int = 0
    staging_capacity: int = 0

    @property
    def header_len(self) -> int:
        return round_up(OFF_TEXT + len(self.schema) + len(self.meta), PAGE)

    @property
    def slot_size(self) -> int:
        return round_up(SLOT_HEADER + self.payload_len, 64)

    @property
    def file_size(self) -> int:
        return self.header_len + self.slots * self.slot_size

    @property
    def area_size(self) -> int:
        return AREA_HEADER + round_up(self.staging_capacity, PAGE)

    def check(self) -> None:
        """Raises RingError for what no ring can be."""
        n, s, a, c = self.payload_len, self.slots, self.staging_areas, self.staging_capacity
        for bad, what in (
            (not 8 <= n <= MAX_PAYLOAD or n % 8, f"payload of {n} bytes: want a multiple of 8 in [8, {MAX_PAYLOAD}]"),
            (not 2 <= s <= MAX_SLOTS or s & (s - 1), f"{s} slots: want a power of two in [2, {MAX_SLOTS}]"),
            (len(self.schema) > MAX_TEXT, f"schema of {len(self.schema)} bytes: at most {MAX_TEXT}"),
            (len(self.meta) > MAX_TEXT, f"metadata of {len(self.meta)} bytes: at most {MAX_TEXT}"),
            (len(self.run_id) > MAX_RUN_ID or 0 in self.run_id,
             f"run id {self.run_id!r}: at most {MAX_RUN_ID} bytes, none of them zero"),
            (not 0 <= self.generation < 1 << 32, f"generation {self.generation}: want 0 to 2^32-1"),
            (not 0 <= a <= MAX_AREAS, f"{a} staging areas: at most {MAX_AREAS}"),
            (not 0 <= c <= MAX_CAPACITY, f"staging areas of {c} bytes: at most {MAX_CAPACITY}"),
            ((a == 0) != (c == 0), f"{a} staging areas of {c} bytes: both or neither"),
            (self.file_size > MAX_RING, f"ring of {self.file_size} bytes: at most {MAX_RING}"),
        ):  # fmt: skip
            if bad:
                raise RingError(f"cannot make a ring: {what}")

    def encode(self) -> bytes:
        """Returns the header: all of it but the words that change while the ring lives."""
        pid, start, boot_id = identity()
        b = bytearray(self.header_len)
        meta_off = OFF_TEXT + len(self.schema)
        struct.pack_into(
            "<8sII4Q4I32s32sIIQ16sIIq", b, 0, b"USPRING1", 1, 0x01020304,
            len(b), self.slot_size, self.slots, self.payload_len,
            OFF_TEXT, len(self.schema), meta_off, len(self.meta),
            hashlib.sha256(self.schema).digest(), self.run_id, self.generation,
            self.staging_areas, self.staging_capacity, boot_id, pid, 0, start,
        )  # fmt: skip
        b[OFF_TEXT : meta_off + len(self.meta)] = self.schema + self.meta
        crc = zlib.crc32(self.meta, zlib.crc32(self.schema, zlib.crc32(b[:252])))
        struct.pack_into("<I", b, 252, crc)
        return bytes(b)

    def encode_area(self, i: int) -> bytes:
        """Returns the header of staging area i."""
        b = struct.pack("<8sIIQ32sI", b"USPSTAG1", 1, i, self.staging_capacity, self.run_id, self.generation)
        return b + struct.pack("<I", zlib.crc32(b))


def identity() -> tuple[int, int, bytes]:
    """Returns what a header says of its producer: pid, start in Unix nanoseconds, and the boot of the machine."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as f:
            boot_id = bytes.fromhex(f.read().strip().replace("-", ""))
    except (OSError, ValueError):
        boot_id = b""
    return os.getpid(), time.time_ns(), boot_id if len(boot_id) == 16 else bytes(16)


def round_up(n: int, to: int) -> int:
    return (n + to - 1) // to * to


def default_dir() -> str:
    """Returns the directory for rings, as the recorder chooses it; makes nothing.

    $USP_RING_DIR, or else /dev/shm/usp-UID, $XDG_RUNTIME_DIR/usp, usp-UID in the temporary directory, whichever
    exists or can be made first.
    """
    if named := os.environ.get("USP_RING_DIR"):
        return named
    user = f"usp-{os.getuid()}"
    for parent, name in (("/dev/shm", user), (os.environ.get("XDG_RUNTIME_DIR", ""), "usp")):
        if parent and _usable(parent, os.path.join(parent, name)):
            return os.path.join(parent, name)
    return os.path.join(tempfile.gettempdir(), user)


def _usable(parent: str, path: str) -> bool:
    try:
        st = os.lstat(path)
    except FileNotFoundError:
        return os.access(parent, os.W_OK | os.X_OK)
    except OSError:
        return False
    return _why_not_private(path, st) == ""


def _why_not_private(path: str, st: os.stat_result) -> str:
    if not stat.S_ISDIR(st.st_mode):
        return f"{path} is not a directory"
    if st.st_uid != os.getuid():
        return f"{path} belongs to user {st.st_uid}, not {os.getuid()}"
    if st.st_mode & 0o022:
        return f"{path} has mode {stat.S_IMODE(st.st_mode):04o}: others may write to it: chmod 700 it"
    return ""


def prepare_dir(path: str) -> None:
    """Makes the directory, mode 0700, if it is missing.

    Raises RingError if it cannot, or if it belongs to another user or others may write to it.
    """
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), 0o700, exist_ok=True)
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        problem = _why_not_private(path, os.lstat(path))
    except OSError as e:
        raise error(e.errno, f"directory for rings {path}: {e.strerror}: set USP_RING_DIR to another") from e
    if problem:
        raise error(errno.EACCES, f"directory for rings: {problem}, or set USP_RING_DIR to another")


def ring_path(directory: str, run_id: str) -> str:
    """Returns the name of a run's ring in a directory."""
    return os.path.join(directory, run_id + ".ring")


def error(number: int | None, text: str) -> RingError:
    """Returns a RingError with its errno, and a text without it."""
    e = RingError(text)
    e.errno = number
    return e


class NewFile:
    """A file that is locked, reserved and mapped before it gets its name.

    path, fd (holds the lock), map. Raises RingError; then nothing is left.
    """

    def __init__(self, path: str, size: int) -> None:
        self.path = path
        self.size = size
        self.fd = -1
        self._temp = ""  # temporary name; "" if it has none
        self._linked = False
        self._copies: list[tuple[int, int, int]] = []
        self.map: mmap.mmap
        try:
            self._open()
            os.fchmod(self.fd, 0o600)
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._reserve()
            self.map = mmap.mmap(self.fd, size)
            self._copies = _descriptors(self.fd)
            self.map.madvise(mmap.MADV_DONTFORK)
            _touch(self.map)
        except OSError as e:
            self.discard()
            raise self._explain(e) from e
        except BaseException:
            self.discard()
            raise

    def _explain(self, e: OSError) -> RingError:
        where = os.path.dirname(self.path) or "."
        if e.errno in (errno.ENOSPC, errno.EFBIG, errno.ENOMEM):
            return error(
                e.errno,
                f"{where} has no room for the {self.size} bytes of {os.path.basename(self.path)} "
                f"({(e.strerror or str(e)).lower()}): free space there, set USP_RING_DIR to another directory, "
                "or make the ring or its staging areas smaller",
            )
        return error(e.errno, f"cannot make {self.path}: {e.strerror or e}")

    def _open(self) -> None:
        directory, base = os.path.split(self.path)
        try:  # without a name, so that a process killed here leaves nothing
            if os.path.isdir("/proc/self/fd"):
                self.fd = os.open(directory or ".", os.O_TMPFILE | os.O_RDWR, 0o600)
                return
        except OSError as e:
            if e.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise
        for i in range(1000):
            temp = os.path.join(directory, f".{base}.tmp-{os.getpid()}-{i}")
            try:
                self.fd = os.open(temp, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            except FileExistsError:
                continue
            self._temp = temp
            return
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), self.path)

    def _reserve(self) -> None:
        free = os.fstatvfs(self.fd)
        if free.f_blocks and self.size > free.f_bavail * free.f_frsize:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # before it has filled what there is
        for at in range(0, self.size, _STEP):
            os.posix_fallocate(self.fd, at, min(_STEP, self.size - at))

    def link(self) -> None:
        """Gives the file its name. Raises FileExistsError if that is taken."""
        if self._temp:
            os.link(self._temp, self.path)
        else:
            # With a descriptor for the source, the link is made by linkat and follows the one in /proc.
            os.link(f"/proc/self/fd/{self.fd}", self.path, src_dir_fd=self.fd, follow_symlinks=True)
        self._linked = True
        if self._temp:
            os.unlink(self._temp)
            self._temp = ""

    def disown(self) -> None:
        """In a forked child: gives up every descriptor of the file, also the one that mmap keeps, without unlocking it.

        They come to mean /dev/null, so that whoever closes one later closes nothing else.
        """
        null = os.open(os.devnull, os.O_RDWR)
        for fd, device, inode in self._copies:
            try:
                st = os.fstat(fd)
            except OSError:
                continue  # a program that closes everything was here
            if (st.st_dev, st.st_ino) == (device, inode):
                os.dup2(null, fd, inheritable=False)
        os.close(null)

    def discard(self) -> None:
        """Takes back everything, the name included."""
        for name in (self._temp, self.path if self._linked else ""):
            if name:
                try:
                    os.unlink(name)
                except OSError:
                    pass  # on the way out of another error
        self._temp, self._linked = "", False
        if getattr(self, "map", None) is not None:
            try:
                self.map.close()
            except BufferError:
                pass  # the views on it end it
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _descriptors(fd: int) -> list[tuple[int, int, int]]:
    """Returns the descriptors of the file that fd is of, with device and inode: mmap has made a second one."""
    its = os.fstat(fd)
    try:
        candidates: list[int] = [int(name) for name in os.listdir("/proc/self/fd")]
    except OSError:
        candidates = list(range(4096))
    found = []
    for other in candidates:
        try:
            st = os.fstat(other)
        except OSError:
            continue
        if (st.st_dev, st.st_ino) == (its.st_dev, its.st_ino):
            found.append((other, st.st_dev, st.st_ino))
    return found


def _touch(m: mmap.mmap) -> None:
    """Maps every page now, not in the middle of the loop."""
    try:
        m.madvise(_POPULATE_WRITE)
        return
    except OSError:
        pass  # an older kernel
    pages = len(m) // PAGE
    with memoryview(m) as view, view[: pages * PAGE : PAGE] as firsts:
        firsts[:] = bytes(pages)


def exists_error(path: str) -> RingError:
    """Says whose the file in the way is."""
    who = "is not a usable ring: choose another name"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            head = os.pread(fd, 256, 0)
            if len(head) == 256 and head[:8] == b"USPRING1":
                run, generation, pid = (
                    head[96:128].rstrip(b"\0").decode("ascii", "replace"),
                    head[128:132],
                    head[160:164],
                )
                its = (
                    f"run {run}, generation {int.from_bytes(generation, 'little')}, pid {int.from_bytes(pid, 'little')}"
                )
                try:
                    fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    who = f"was left by a producer that is gone ({its}): drain it with usp record, or remove it"
                except BlockingIOError:
                    who = f"belongs to a producer that is alive ({its}): two producers cannot share a ring"
        finally:
            os.close(fd)
    except OSError as e:
        who = f"cannot be looked at ({e.strerror})"
    return error(errno.EEXIST, f"ring {path} exists and {who}")
