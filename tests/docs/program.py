"""What the program has: its commands, log events and metrics, and what it says."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module

import typer
from typer.core import TyperGroup

from tests.docs.pages import ROOT
from worker import cli
from worker.cli.app import app
from worker.store.consumption import Consumption
from worker.telemetry.health import Facts
from worker.telemetry.metrics import Metrics

LEVELS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error"}
LEVELS["exception"] = "error"


@cache
def commands() -> dict[str, set[str]]:
    """Map each command, and each group of commands, to its options."""
    for name in cli.COMMANDS:
        import_module(f"{cli.__name__}.{name}")
    return dict(_walk("", typer.main.get_command(app)))


def groups() -> set[str]:
    """Return the groups among the commands; the program itself is one, without a name."""
    return {path.rpartition(" ")[0] for path in commands()}


def _walk(path: str, command: object) -> Iterator[tuple[str, set[str]]]:
    options = {opt for each in getattr(command, "params", ()) for opt in each.opts}
    yield path, options | {"--help"}
    if isinstance(command, TyperGroup):
        for name, each in command.commands.items():
            yield from _walk(f"{path} {name}".strip(), each)


@cache
def metrics() -> dict[str, str]:
    """Map each metric, with its labels in braces, to its type."""
    found = Metrics(Facts(), sqlite_version="0")
    # Only what has been seen has labels.
    found.partitions([0], [Consumption(0, "worker", 0.0, 0, None)])
    text = found.render()[0].decode()
    types = dict(re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE))
    labels = {
        name: ",".join(sorted(re.findall(r"(\w+)=", found)))
        for name, found in re.findall(r"^(\w+)\{(.*)\} ", text, re.MULTILINE)
    }
    return {
        f"{name}{{{labels[name]}}}" if name in labels else name: kind
        for name, kind in types.items()
    }


@cache
def log_events() -> dict[str, str]:
    """Map each log event to its level."""
    return dict(event for tree in _trees() for node in ast.walk(tree) for event in _events(node))


def _events(node: ast.AST) -> Iterator[tuple[str, str]]:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            choices = {
                target.id: texts(assign.value)
                for assign in ast.walk(node)
                if isinstance(assign, ast.Assign)
                for target in assign.targets
                if isinstance(target, ast.Name)
            }
            for call in ast.walk(node):
                yield from _logged(call, choices)
        case ast.Dict(keys=[ast.Constant("event"), ast.Constant("level"), *_]):
            event, level, *_ = (texts(value) for value in node.values)
            yield event[0], level[0]


def _logged(call: ast.AST, choices: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    """Yield the events of one call of a logger; one in a variable may be any that it is set to."""
    match call:
        case ast.Call(ast.Attribute(logger, level), [first, *_]) if level in LEVELS and ast.unparse(
            logger
        ) in ("self._log", "logs.get_logger()"):
            chosen = choices[first.id] if isinstance(first, ast.Name) else texts(first)
            yield from ((event, LEVELS[level]) for event in chosen)


def texts(node: ast.AST) -> list[str]:
    """Return the texts in an expression; `...` stands for what is only known at run time."""
    match node:
        case ast.Constant(str(text)):
            return [text]
        case ast.JoinedStr(parts):
            return ["".join("".join(texts(part)) or "..." for part in parts)]
        case ast.FormattedValue():
            return []
    return [text for child in ast.iter_child_nodes(node) for text in texts(child)]


@cache
def sentences() -> str:
    """Return every text of the program."""
    return "\n".join(text for tree in _trees() for text in texts(tree))


@cache
def words() -> set[str]:
    """Return every word of everything that a page may name."""
    folders = ("worker", "tests", "deploy")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    texts_of = (path.read_text() for path in files if path.suffix != ".pyc")
    return {word for text in texts_of for word in re.findall(r"\w+", text)}


@cache
def _trees() -> list[ast.Module]:
    return [ast.parse(path.read_text()) for path in sorted((ROOT / "worker").rglob("*.py"))]
