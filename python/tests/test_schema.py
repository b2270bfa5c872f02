"""The text of a schema is that of Go's package record, and what Go refuses is refused here."""

from __future__ import annotations

import json
from typing import Any

import pytest
from conftest import VECTORS

from usp._errors import FieldError
from usp._schema import Field, Schema, check_names, field, fields, resolve

INDEX = json.loads((VECTORS / "schema" / "index.json").read_text())


def declared(vector: dict[str, Any]) -> list[Field]:
    return [Field(f["Name"], f["Class"], f["Type"], f["Len"], f["Unit"]) for f in vector["Fields"]]


@pytest.mark.parametrize("vector", INDEX["Schemas"], ids=lambda v: v["Note"])
def test_text_is_that_of_go(vector: dict[str, Any]) -> None:
    schema = Schema(vector["Name"], declared(vector))
    assert schema.text.decode() == vector["Text"]
    assert schema.sum.hex() == vector["SHA256"]
    assert schema.words == vector["Words"]
    assert schema.payload_len == 8 * vector["Words"]
    assert schema.stored_words == vector["StoredWords"]
    assert list(schema.offsets) == vector["Offsets"]
    assert [f.name for f in schema.fields] == [line.split()[1] for line in vector["Text"].splitlines()[2:]]


@pytest.mark.parametrize("vector", INDEX["Refused"], ids=lambda v: v["Note"])
def test_what_go_refuses(vector: dict[str, Any]) -> None:
    with pytest.raises(FieldError):
        Schema(vector["Name"], declared(vector))


def test_too_many_fields() -> None:
    most = [Field(f"f{i}", "metric", "f64", 1) for i in range(1024)]
    assert Schema("a", most).words == 1026
    with pytest.raises(FieldError, match="1025"):
        Schema("a", [*most, Field("one_more", "metric", "f64", 1)])


def test_errors_name_the_field() -> None:
    for bad in (
        Field("x", "gauge", "f64", 1), Field("x", "metric", "f16", 1), Field("x", "metric", "f64", 0), Field("x",
        "digest", "u64", 1),
        Field("x", "metric", "f64", 1, "a b"), Field("x", "metric", "f64", None), Field("x", "metric", None, 1),
    ):  # fmt: skip
        with pytest.raises(FieldError, match="'x'"):
            Schema("a", [Field("good", "metric", "f64", 1), bad])


def test_fields() -> None:
    assert fields(
        a="metric", b=("digest", 4), c=("flag", 1), d=field("metric", shape=(2, 3), dtype="float32", unit="m"),
        e=field("metric")
    ) == (
        Field("a", "metric", None, None), Field("b", "digest", "f64", 4), Field("c", "flag", "u64", 1),
        Field("d", "metric", "f32", 6, "m"), Field("e", "metric", None, None),
    )  # fmt: skip
    assert field("metric", shape=()).len == 1
    for bad in (
        lambda: fields(), lambda: fields(a="gauge"), lambda: fields(a=3), lambda: fields(a=("metric", 0)),
        lambda: fields(a=("metric", 2.0)),
        lambda: fields(step="metric"), lambda: fields(A="metric"), lambda: field("metric", shape=(2, 0)),
        lambda: field("metric", dtype="complex64"),
        lambda: field("gauge"), lambda: fields(a=field("digest", dtype="int32")), lambda: fields(a=("metric", True)),
    ):  # fmt: skip
        with pytest.raises(FieldError):
            bad()


def test_resolve_without_arrays() -> None:
    got = resolve(
        fields(a="metric", b="flag", c="digest", d=("metric", 2), e="metric"),
        {"a": 1, "b": True, "c": [0.5, 1], "d": 0, "e": 2.5},
    )
    assert [(f.type, f.len) for f in got] == [("f64", 1), ("u64", 1), ("f64", 2), ("f64", 2), ("f64", 1)]
    for bad in ("text", None, [], [[1.0]], {"a": 1}, 1j, object()):
        with pytest.raises(FieldError, match="'a'"):
            resolve(fields(a="metric"), {"a": bad})
    with pytest.raises(FieldError, match="'b'"):
        resolve(fields(a="metric", b="metric"), {"a": 1})
    with pytest.raises(FieldError, match="'b'"):
        resolve(fields(a="metric"), {"a": 1, "b": 2})


def test_resolve_arrays() -> None:
    np = pytest.importorskip("numpy")
    for dtype, cls, typ in (
        ("float64", "metric", "f64"), ("float32", "metric", "f32"), ("float16", "digest", "f32"), ("int32", "metric",
        "i64"),
        ("uint8", "flag", "u64"), ("bool", "flag", "u64"), ("int64", "metric", "i64"), ("uint64", "metric", "u64"),
    ):  # fmt: skip
        (f,) = resolve(fields(a=cls), {"a": np.zeros((2, 3), dtype)})
        assert (f.type, f.len) == (typ, 6), dtype
        (f,) = resolve(fields(a=cls), {"a": np.dtype(dtype).type(1)})
        assert (f.type, f.len) == (typ, 1), dtype
    for value in (
        np.zeros(3, "complex64"),
        np.zeros(3, "U4"),
        np.zeros(0),
        np.zeros(3, "longdouble"),
        np.zeros(3, "O"),
    ):
        with pytest.raises(FieldError, match="'a'"):
            resolve(fields(a="metric"), {"a": value})
    with pytest.raises(FieldError, match="'a'.*digest"):
        resolve(fields(a="digest"), {"a": np.zeros(3, "int64")})
    with pytest.raises(FieldError, match="'a'.*2 elements.*3"):
        resolve(fields(a=field("metric", shape=2)), {"a": np.zeros(3)})
    assert field("metric", dtype=np.float32).type == "f32" and field("metric", dtype=np.dtype("int16")).type == "i64"


def test_resolve_reads_no_device_data() -> None:
    """An object that has a shape and a dtype and refuses everything else is enough."""

    class Lazy:
        shape, dtype = (4,), "bfloat16"

        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"{name} was asked for")

        def __array__(self, *a: object) -> Any:
            raise AssertionError("data was asked for")

        __float__ = __index__ = __len__ = __iter__ = __array__

    (f,) = resolve(fields(a="digest"), {"a": Lazy()})
    assert (f.type, f.len) == ("f32", 4)


def test_names() -> None:
    check_names(fields(a="metric"), {"a": 1})
    with pytest.raises(FieldError, match=r"fields 'a', 'b'"):
        check_names(fields(a="metric", b="metric", c="metric"), {"c": 1})
