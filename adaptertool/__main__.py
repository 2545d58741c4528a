"""Where the command begins: `adaptertool`, and `python -m adaptertool`."""

import sys
from typing import NoReturn

from adaptertool.process import prepare


def main() -> NoReturn:
    prepare(sys.argv[1:])
    try:
        from adaptertool.cli import main as run  # noqa: PLC0415  # takes a while, in which there may be a Ctrl-C
    except KeyboardInterrupt:
        print("adaptertool: interrupted; nothing was published", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
