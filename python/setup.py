"""Builds the optional extension usp._native. Without a C compiler the package works in pure Python on x86-64."""

from __future__ import annotations

import sys
from glob import glob

from setuptools import Extension, setup

SOURCES = sorted(glob("src/usp/native/*.c"))
HEADERS = sorted(glob("src/usp/native/*.h"))

setup(
    ext_modules=[
        Extension(
            "usp._native",
            SOURCES,
            depends=HEADERS,
            define_macros=[("Py_LIMITED_API", "0x030B0000")],
            extra_compile_args=["-std=c11", "-O2", "-fvisibility=hidden", "-Wall", "-Wextra"],
            extra_link_args=["-pthread"],
            py_limited_api=True,
            optional=True,
        )
    ]
    if sys.platform == "linux"
    else [],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
