"""The entry: from the first line on, Ctrl-C ends without a traceback."""

import os
import signal
import sys


def main() -> None:
    """Run the command line and exit with its code."""
    if sys.platform == "win32":
        sys.exit("manychar runs on Linux and macOS; on Windows, use it inside WSL: wsl --install")
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # imports take time, and Ctrl-C may come then
    from manychar.processes.signals import STOPS, end_at_once, handle  # noqa: PLC0415

    handle(*STOPS, by=end_at_once)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # it was closed: else the next file gets its descriptor
            # Standard output's is read-only: a write to a closed one fails.
            access = os.O_WRONLY if name == "stderr" else os.O_RDONLY
            file = os.open(os.devnull, access)
            setattr(sys, name, open(file, mode, encoding="utf-8"))  # noqa: PTH123, SIM115
    from manychar.cli.app import run  # noqa: PLC0415
    from manychar.processes.queued_stream import queued  # noqa: PLC0415

    try:
        with queued("stderr"):
            sys.exit(run(sys.argv[1:]))
    finally:  # nothing is left to undo, and the interpreter's end would restore what kills
        for number in STOPS:
            signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main()
