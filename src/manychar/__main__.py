"""The entry: from the first line on, Ctrl-C ends without a traceback."""

import os
import signal
import sys
from types import FrameType


def _interrupted(_number: int, _frame: FrameType | None) -> None:
    os._exit(130)


def main() -> None:
    """Run the command line and exit with its code."""
    if sys.platform == "win32":
        sys.exit("manychar runs on Linux and macOS; on Windows, use it inside WSL: wsl --install")
    signal.signal(signal.SIGINT, _interrupted)
    from manychar.cli.app import run  # noqa: PLC0415 - imports take time, and Ctrl-C may come then

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
