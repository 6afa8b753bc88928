"""The calls that write, seen inside Python, each of which can be made to kill its process or fail.

Audit events (open to write, rename, remove, mkdir, rmdir, chmod, truncate), and, put in the place
of the real ones, `os.fsync`, `write` of a file, and the writers in Rust of safetensors and
tokenizers. A call that would change nothing, such as mkdir of what is there, is none.
"""

from __future__ import annotations

import builtins
import contextlib
import errno
import fcntl
import io
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import transformers

AUDITED = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.truncate")
FAULTS = {"kill": None, "no space": errno.ENOSPC, "io error": errno.EIO}


class Layer:
    """Counts the calls that write below `folder`. `stop` is asked at each of them, by its number
    from 1, for the fault that is to happen in this process, if any."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls, self.listening = str(folder), list[tuple[str, str]](), False
        self.stop: Callable[[int], str | None] = lambda _: None
        self.open, self.fsync = io.open, os.fsync

    @contextlib.contextmanager
    def listens(self) -> Iterator[None]:
        self.calls, self.listening = [], True
        try:
            yield
        finally:
            self.listening = False

    def meet(self, call: str, file: object, half: Callable[[], Any] = lambda: None) -> None:
        """A call that writes. A `half` of it is done before the fault."""
        if not self.listening:
            return
        name = os.fspath(file) if isinstance(file, str | bytes | os.PathLike) else ""
        name = os.path.abspath(os.fsdecode(name))  # noqa: PTH100
        if not name.startswith(self.folder) or changes_nothing(call, name):
            return
        self.calls.append((call, name))
        self.listening = False  # what `stop` and `half` write is no call
        fault = self.stop(len(self.calls))
        if fault is None:
            self.listening = True
            return
        half()
        number = FAULTS[fault]
        if number is None:
            signal.raise_signal(signal.SIGKILL)
        assert number is not None
        if call.startswith("save"):  # as Rust tells of it
            raise Exception(f"Error while writing: {os.strerror(number)} (os error {number})")
        raise OSError(number, os.strerror(number), name)

    def hear(self, event: str, what: tuple[Any, ...]) -> None:
        if not self.listening:
            return
        if event == "open" and what[2] & (os.O_WRONLY | os.O_RDWR):
            self.meet("open", what[0])
        elif event in AUDITED:
            file = what[0] if event == "os.truncate" else below(what)
            self.meet(event.removeprefix("os."), file)

    def sync(self, handle: int) -> None:
        self.meet("fsync", file_of(handle))
        self.fsync(handle)

    def opened(self, file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        handle = self.open(file, mode, *rest, **options)
        return Watched(handle, self) if set(mode) & set("wax+") else handle

    def writer(self, name: str, save: Callable[..., Any]) -> Callable[..., Any]:
        """`save`, whose second argument is the file or folder that it writes."""

        def saves(*arguments: Any, **options: Any) -> Any:
            file = Path(arguments[1])

            def half() -> None:
                save(*arguments, **options)
                for written in [file] if file.is_file() else sorted(file.glob("tokenizer.json")):
                    os.truncate(written, written.stat().st_size // 2)

            self.meet(f"save {name}", file, half)
            return save(*arguments, **options)

        return saves

    def install(self) -> None:
        sys.addaudithook(self.hear)
        os.fsync = self.sync
        builtins.open = io.open = self.opened  # type: ignore[assignment]
        shutil._USE_CP_SENDFILE = False  # type: ignore[attr-defined]  # copies by `write`
        torch_files: Any = safetensors.torch
        torch_files.serialize_file = self.writer("tensors", torch_files.serialize_file)
        fast: Any = transformers.PreTrainedTokenizerFast
        fast.save_pretrained = self.writer("tokenizer", fast.save_pretrained)


class Watched:
    """A file whose writes are seen."""

    def __init__(self, file: Any, layer: Layer) -> None:
        self.file, self.layer = file, layer

    def write(self, data: Any) -> Any:
        def half() -> None:
            self.file.write(data[: len(data) // 2])
            self.file.flush()

        self.layer.meet("write", self.file.name, half)
        return self.file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.file)


def file_of(handle: int) -> Path:
    return Path(f"/proc/self/fd/{handle}").readlink()


def below(what: tuple[Any, ...]) -> str:
    """The path of a call, which may be one below an open folder (`shutil.rmtree`)."""
    folder = what[-1] if isinstance(what[-1], int) and what[-1] >= 0 else None
    path = os.fsdecode(what[0]) if not isinstance(what[0], int) else ""
    here = file_of(folder) if folder is not None else ""
    return os.path.join(here, path)  # noqa: PTH118


def changes_nothing(call: str, file: str) -> bool:
    """It only finds out that the file is there, or is not."""
    there = os.path.lexists(file)
    return there if call == "mkdir" else not there if call in ("remove", "rmdir") else False


def reopen(there: Path, here: Path) -> None:
    """Let the files below `there` that this process has open be their copies below `here`."""
    for handle in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        with contextlib.suppress(OSError):  # the listing's own, and files that are gone
            file = file_of(handle)
            if not file.is_relative_to(there):
                continue
            flags = fcntl.fcntl(handle, fcntl.F_GETFL)
            copy = os.open(here / file.relative_to(there), flags)
            if not flags & os.O_DIRECTORY:
                os.lseek(copy, os.lseek(handle, 0, os.SEEK_CUR), os.SEEK_SET)
            os.dup2(copy, handle)
            os.close(copy)
