"""Drives a headless Chromium over its debugging port: types, clicks, looks and photographs."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run")
PATIENCE = 60  # seconds


class Browser:
    """One page of a browser."""

    def __init__(self, socket: Any, loop: Any) -> None:
        self.socket, self.loop, self.number = socket, loop, 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call the browser and wait for its answer; events in between are dropped."""
        self.number += 1
        text = json.dumps({"id": self.number, "method": method, "params": parameters})
        self.loop.run_sync(lambda: self.socket.write_message(text))
        while True:
            answer = json.loads(self.loop.run_sync(self.socket.read_message, timeout=PATIENCE))
            if answer.get("id") == self.number:
                return dict(answer["result"])

    def run(self, script: str) -> Any:
        """The value of a line of JavaScript in the page."""
        said = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    def wait_for(self, script: str) -> None:
        """Until a line of JavaScript is true."""
        end = time.monotonic() + PATIENCE
        while not self.run(script):
            assert time.monotonic() < end, script
            time.sleep(0.05)

    def open(self, url: str, *, width: int = 1100, height: int = 800, dark: bool = False) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def photograph(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A browser with a profile of its own in `folder`."""
    from tornado.httpclient import HTTPClient
    from tornado.ioloop import IOLoop
    from tornado.websocket import websocket_connect

    assert CHROMIUM
    command = [CHROMIUM, *FLAGS, "--remote-debugging-port=0", f"--user-data-dir={folder}"]
    process = subprocess.Popen([*command, "about:blank"], stderr=subprocess.PIPE, text=True)
    loop = IOLoop(make_current=False)
    try:
        assert process.stderr
        port = next(
            m[1] for m in map(re.compile(r"127\.0\.0\.1:(\d+)/").search, process.stderr) if m
        )
        pages = json.loads(HTTPClient().fetch(f"http://127.0.0.1:{port}/json/list").body)
        address = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
        yield Browser(loop.run_sync(lambda: websocket_connect(address), timeout=PATIENCE), loop)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
        loop.close(all_fds=True)
