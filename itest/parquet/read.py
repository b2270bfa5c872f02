"""Reads Parquet files with DuckDB or pyarrow, and prints what it finds as JSON.

    read.py types FILES          names and types of the columns, as each reader says them
    read.py sums FILES           count, and sums that tell lost, doubled and exchanged values
    read.py query < STATEMENTS   a JSON list of SQL statements; a list of results
    read.py rows BASE            each value of BASE.parquet, as each reader has it, and of BASE.csv and BASE.jsonl as Python has it
"""

import csv
import glob
import json
import math
import struct
import sys

import duckdb
import pyarrow.compute as pc
import pyarrow.parquet as pq

# Each is a column that is made of others, exact in float64, so that the order of a sum does not matter.
SUMS = {
    "step": ("step", lambda t: t["step"]),
    "time": ("epoch_ns(time) // 1000000 % 4096", lambda t: modulo(pc.divide(t["time"].cast("int64"), 1000000), 4096)),
    "generation": ("generation", lambda t: t["generation"]),
    "seq": ("seq", lambda t: t["seq"]),
    "loss": ("if(isfinite(loss), loss, 0)", lambda t: pc.if_else(pc.is_finite(t["loss"]), t["loss"], 0.0)),
    "loss_nan": ("isnan(loss)::INT", lambda t: pc.is_nan(t["loss"]).cast("int64")),
    "loss_inf": ("isinf(loss)::INT", lambda t: pc.is_inf(t["loss"]).cast("int64")),
    "small": ("small::DOUBLE", lambda t: t["small"].cast("float64")),
    "count": ("count", lambda t: t["count"]),
    "delta": ("delta", lambda t: t["delta"]),
    "pair_0": ("pair[1]", lambda t: pc.list_element(t["pair"], 0)),
    "pair_1": ("pair[2]", lambda t: pc.list_element(t["pair"], 1)),
    "length": ("len(pair)", lambda t: pc.list_value_length(t["pair"])),
    "flags": ("flags", lambda t: t["flags"]),
    "mixed": ("small * (step % 7)", lambda t: pc.multiply(t["small"].cast("float64"), modulo(t["step"], 7).cast("float64"))),
}


def modulo(a, n):
    return pc.subtract(a, pc.multiply(pc.divide(a, n), n))


def types(pattern):
    duck = duckdb.execute("DESCRIBE SELECT * FROM read_parquet(?, hive_partitioning = false)", [pattern]).fetchall()
    arrow = pq.read_schema(sorted(glob.glob(pattern))[0])
    return {"duckdb": {r[0]: r[1] for r in duck}, "pyarrow": {f.name: str(f.type) for f in arrow}}


def sums(pattern):
    columns = ", ".join(f"sum({sql})" for sql, _ in SUMS.values())
    duck = duckdb.execute(f"SELECT count(*), {columns} FROM read_parquet(?, hive_partitioning = false)", [pattern]).fetchone()
    count, total = 0, [0] * len(SUMS)
    for name in sorted(glob.glob(pattern)):
        for batch in pq.ParquetFile(name).iter_batches(1 << 17):
            count += len(batch)
            for i, (_, of) in enumerate(SUMS.values()):
                total[i] += pc.sum(of(batch)).as_py() or 0
    # A filter that statistics may answer without looking: only infinity is larger, and NaN where SQL sorts it.
    where = "SELECT count(*) FROM read_parquet(?, hive_partitioning = false) WHERE loss > 1e6"
    duck = (*duck, duckdb.execute(where, [pattern]).fetchone()[0])
    total.append(len(pq.read_table(sorted(glob.glob(pattern)), columns=["loss"], filters=[("loss", ">", 1e6)], partitioning=None)))
    names = ["records", *SUMS, "large"]
    return {"duckdb": dict(zip(names, map(number, duck))), "pyarrow": dict(zip(names, map(number, [count, *total])))}


def number(x):
    """As Go writes it: sums are whole numbers or halves."""
    return str(int(x)) if x == int(x) else str(float(x))


def query():
    results = []
    for statement in json.load(sys.stdin):
        cursor = duckdb.execute(statement)
        results.append([[str(v) for v in row] for row in cursor.fetchall()])
    return results


def exact(x):
    """A value such that no two are written alike: an integer by its digits, a float by its bits."""
    if isinstance(x, float):
        return "nan" if math.isnan(x) else struct.pack(">d", x).hex()
    return str(x)


def flat(row):
    for x in row:
        yield from map(exact, x if isinstance(x, list) else [x])


def rows(base):
    table = pq.read_table(base + ".parquet")
    at = table.column_names.index("time")
    arrow = table.set_column(at, "time", table["time"].cast("int64"))
    duck = duckdb.execute("SELECT * REPLACE (epoch_ns(time) AS time) FROM read_parquet(?)", [base + ".parquet"])
    columns = [d[0] for d in duck.description]
    # A float in text is its shortest digits; of 32 bits, those of 32 bits.
    kinds = [str(f.type) for f in arrow.schema]
    narrow = struct.Struct("f")

    def number(x, kind):
        if isinstance(x, list):
            return [number(y, kind) for y in x]
        if "int" in kind:
            return int(x)
        return narrow.unpack(narrow.pack(float(x)))[0] if "float" in kind else float(x)

    lines = [json.loads(line) for line in open(base + ".jsonl")]
    head, *text = csv.reader(open(base + ".csv"))
    wide = [kind for kind, x in zip(kinds, arrow.slice(0, 1).to_pylist()[0].values()) for _ in (x if isinstance(x, list) else [x])]
    return {
        "names": {"pyarrow": table.column_names, "duckdb": columns, "jsonl": list(lines[0]), "csv": head},
        "rows": {
            "pyarrow": [list(flat(r.values())) for r in arrow.to_pylist()],
            "duckdb": [list(flat(r)) for r in duck.fetchall()],
            "jsonl": [list(flat(number(x, k) for x, k in zip(r.values(), kinds))) for r in lines],
            "csv": [list(flat(number(x, k) for x, k in zip(r, wide))) for r in text],
        },
    }


if sys.argv[1] == "query":
    duckdb.execute("SET TimeZone = 'UTC'")
    answer = query()
else:
    answer = {"types": types, "sums": sums, "rows": rows}[sys.argv[1]](sys.argv[2])
json.dump(answer, sys.stdout)
