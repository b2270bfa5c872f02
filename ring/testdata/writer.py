"""Writes records through the package usp for the tests of package ring: PATH pure|native HOW COUNT SLOTS [paced].

HOW is emit, block or emitter. Word i of record n is (n+1)*0x9e3779b97f4a7c15 xor i<<32, of three words; an emitter's
records have step n, time 3n+1, the u64 7n and the f64 n/3. COUNT 0 goes on for ever. Or HOW is stage or fork.
"""

import os
import signal
import struct
import sys
import time

from usp._ring import Ring
from usp._schema import Field, Schema

path, which, how, count, slots, *more = sys.argv[1:]
count, slots, paced = int(count), int(slots), "paced" in more
last = [Field("u", "metric", "u64", 1), Field("x", "digest", "f64", 1)] if how == "emitter" else [Field("u", "metric", "u64", 1)]
staging = {"staging_areas": 2, "staging_capacity": 5000} if how == "stage" else {}
ring = Ring(path, "python", Schema("test", last), b"{}", slots=slots, native=which == "native", **staging)
print("ready", flush=True)


def wait(n: int) -> None:
    """Lets the reader keep up: tests alone do that."""
    while paced and n - ring.consumer().position > slots // 2:
        time.sleep(5e-5)


def payload(n: int) -> bytes:
    k = (n + 1) * 0x9E3779B97F4A7C15 & (1 << 64) - 1
    return struct.pack("<3Q", k, k ^ 1 << 32, k ^ 2 << 32)


step = max(1, min(slots // 8, 1000))
n = 0
if how == "stage":
    ring.emit_block(payload(0) + payload(1))
    for k in range(3):
        done = ring.stage(40 + k, 2 + k, 5000 - k, lambda view, k=k: view.__setitem__(slice(None), bytes([65 + k]) * len(view)))
        print(done, flush=True)
elif how == "fork":
    out, into = os.pipe()
    if (pid := os.fork()) == 0:
        os.write(into, b"x")  # the hook has run
        signal.pause()
    os.read(out, 1)
    print(pid, flush=True)
    signal.pause()
elif how == "emitter":
    emit = ring.emitter(None)
    while not count or n < count:
        wait(n)
        for n in range(n, n + step if not count else min(n + step, count)):
            emit(n, {"u": 7 * n, "x": n / 3}, 3 * n + 1)
        n += 1
elif how == "block":
    while not count or n < count:
        wait(n)
        end = n + step if not count else min(n + step, count)
        ring.emit_block(b"".join(map(payload, range(n, end))))
        n = end
else:
    while not count or n < count:
        wait(n)
        for n in range(n, n + step if not count else min(n + step, count)):
            ring.emit(payload(n))
        n += 1
assert ring.position == max(count, 2 if how == "stage" else 0)
ring.finish(True)
