"""Computes the test vectors of the precision ladder from doc/format/digestlog.md, with Python's own numbers and hashes.

usage: ladder.py VECTORS.json
"""
import hashlib
import hmac
import json
import struct
import sys
from fractions import Fraction

MASK = (1 << 64) - 1


def rotl(x, n):
    return (x << n | x >> (64 - n)) & MASK


def siphash24(key, data):
    k0, k1 = struct.unpack("<QQ", key)
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]

    def round():
        v[0] = (v[0] + v[1]) & MASK
        v[1] = rotl(v[1], 13) ^ v[0]
        v[0] = rotl(v[0], 32)
        v[2] = (v[2] + v[3]) & MASK
        v[3] = rotl(v[3], 16) ^ v[2]
        v[0] = (v[0] + v[3]) & MASK
        v[3] = rotl(v[3], 21) ^ v[0]
        v[2] = (v[2] + v[1]) & MASK
        v[1] = rotl(v[1], 17) ^ v[2]
        v[2] = rotl(v[2], 32)

    whole = len(data) // 8 * 8
    words = list(struct.unpack("<%dQ" % (whole // 8), data[:whole]))
    words.append(int.from_bytes(data[whole:], "little") | (len(data) & 0xFF) << 56)
    for m in words:
        v[3] ^= m
        round()
        round()
        v[0] ^= m
    v[2] ^= 0xFF
    for _ in range(4):
        round()
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def floor_of(q):
    return q.numerator // q.denominator


def place(word, floor):
    """The place of a float64 with these bits, or a text for those that have none."""
    x = struct.unpack("<d", struct.pack("<Q", word))[0]
    if x != x:
        return "nan"
    if x in (float("inf"), float("-inf")):
        return "inf" if x > 0 else "-inf"
    size, low = abs(Fraction(x)), Fraction(2) ** floor
    if size < low:
        return floor_of(Fraction(x) / low * 2**52)
    else:
        octave = 0
        while low * 2 ** (octave + 1) <= size:
            octave += 1
        at = int((octave + size / (low * 2**octave)) * 2**52)
    return -at if x < 0 else at


def grids(elements):
    return min(max(elements, 1) + 1, 8)


CELLS = {"nan": -(2**63), "inf": 2**63 - 1, "-inf": -(2**63 - 1)}


def ladder(words, levels, floor, key):
    places = [place(int(w, 16), floor) for w in words]
    n = len(places)
    sums = {}
    for grid in range(grids(n)):
        shift = grid * 2**52 // (grids(n) | 1)
        cell = lambda p, level: (p + shift) // 2 ** (52 - level)
        message = struct.pack("<II", grid, n)
        for p in places:
            message += struct.pack("<q", CELLS[p] if isinstance(p, str) else cell(p, 2))
        for level in range(2, 51, 4):
            if level > 2:
                added = [0 if isinstance(p, str) else cell(p, level) % 16 for p in places]
                for i in range(0, n, 16):
                    message += struct.pack("<Q", sum(d << 4 * j for j, d in enumerate(added[i : i + 16])))
            sums[level, grid] = struct.pack("<I", siphash24(key, message) & 0xFFFFFFFF)
    return b"".join(sums[level, grid] for level in levels for grid in range(grids(n)))


def derive(secret):
    context = b"usp ladder v1"
    if not secret:
        return hashlib.sha256(context).digest()[:16], bytes(8)
    mac = lambda text: hmac.new(secret, text, hashlib.sha256).digest()
    return mac(context)[:16], mac(context + b" id")[:8]


def main(path):
    with open(path) as f:
        vectors = json.load(f)
    for v in vectors["Ladders"]:
        key, ident = derive(bytes.fromhex(v["Secret"]))
        got = ladder(v["Words"] or [], v["Levels"], v["Floor"], key)
        if got.hex() != v["Ladder"] or ident.hex() != v["KeyID"]:
            sys.exit("%s: %s %s, want %s %s" % (v["Name"], got.hex(), ident.hex(), v["Ladder"], v["KeyID"]))
    levels = list(range(6, 51, 4))
    key, _ = derive(b"")
    for v in vectors["Pairs"]:
        a, b = (ladder(w, levels, -960, key) for w in (v["A"], v["B"]))
        bits = 0
        for i, level in enumerate(levels):
            n = grids(len(v["A"]))
            if any(a[at : at + 4] == b[at : at + 4] for at in range(4 * n * i, 4 * n * (i + 1), 4)):
                bits = level
        if bits != v["Bits"]:
            sys.exit("%s: %d bits, want %d" % (v["Name"], bits, v["Bits"]))
    print("%d ladders and %d pairs are as the page says" % (len(vectors["Ladders"]), len(vectors["Pairs"])))


main(sys.argv[1])
