"""The compiled kernel, which is left out where there is no C compiler; all else is in pyproject.toml.

It is one shared library that Python loads with ctypes and that holds each function once for every level of
instructions. It does not depend on the version of Python, so one wheel serves all of them on a platform.
"""

from __future__ import annotations

import platform
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

SOURCES = Path("adaptertool/numerics/kernel")
# No reassociation and no contraction, which would change results: the last two only tell the compiler that nobody looks
# at error flags, without which it makes no vector code. What debuggers need would be three quarters of the library.
FLAGS = ["-O3", "-g0", "-std=gnu11", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
LEVELS = {"baseline": []}
if platform.machine() in ("x86_64", "AMD64"):
    LEVELS |= {"v3": ["-march=x86-64-v3"], "v4": ["-march=x86-64-v4", "-mprefer-vector-width=512"]}


class Library(build_ext):
    """Compiles one source at several levels; where a compiler does not know one, without it."""

    def build_extension(self, ext: Extension) -> None:
        text = b"".join(path.read_bytes() for path in sorted(SOURCES.glob("*.[ch]")))
        objects = self._compiled("levels.c", "all", [f"-DSOURCES={zlib.crc32(text)}u"])  # as compiled.py has it
        with ThreadPoolExecutor() as pool:  # each takes a compiler some fifteen seconds
            levels = {level: pool.submit(self._level, level, flags) for level, flags in LEVELS.items()}
        for level, made in levels.items():
            try:
                objects += made.result()
            except Exception:
                if level == "baseline":
                    raise
                print(f"the kernel is built without level {level}", file=sys.stderr)
        self.compiler.link_shared_object(objects, self.get_ext_fullpath(ext.name), libraries=["m"])

    def _level(self, level: str, flags: list[str]) -> list[str]:
        return self._compiled("kernel.c", level, [*flags, f"-DLEVEL={level}"])

    def _compiled(self, source: str, level: str, flags: list[str]) -> list[str]:
        folder = str(Path(self.build_temp, level))
        found: list[str] = self.compiler.compile([str(SOURCES / source)], folder, extra_postargs=[*FLAGS, *flags])
        return found

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"  # ctypes loads it, on every system by this name


class Wheel(bdist_wheel):
    """Tagged for the platform alone."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


extension: Any = Extension(
    "adaptertool.numerics._kernel",
    [str(SOURCES / name) for name in ("kernel.c", "levels.c")],
    depends=[str(path) for path in sorted(SOURCES.glob("*.[ch]"))],
    optional=True,
)
# `make dist` writes them first, since they are made of what the installed command says; other builds go without
MAN = sorted(str(path) for path in Path("man").glob("*.1"))
setup(
    ext_modules=[extension] if sys.platform != "win32" else [],
    data_files=[("share/man/man1", MAN)] if MAN else [],
    cmdclass={"build_ext": Library, "bdist_wheel": Wheel},
)
