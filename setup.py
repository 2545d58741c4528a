"""The compiled kernel, which is left out where there is no C compiler; all else is in pyproject.toml."""

import sys

from setuptools import Extension, setup

# Nothing that lets the compiler change a result: no contraction, no reassociation. The first two only let it see that
# no error flag is looked at, without which it makes no vector code.
FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]

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
