"""The compiled kernel, which is left out where there is no C compiler; all else is in pyproject.toml."""

import sys

from setuptools import Extension, setup

# No reassociation, which would change results: the last two only tell the compiler that nobody looks at error flags,
# without which it makes no vector code.
FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math"]

setup(
    ext_modules=[
        Extension(
            "adaptertool.numerics._kernel",
            ["adaptertool/numerics/kernel.c"],
            extra_compile_args=[] if sys.platform == "win32" else FLAGS,
            optional=True,
        )
    ]
)
