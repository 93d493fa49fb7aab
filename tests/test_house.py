"""The rules of the house, kept by a machine: imports, awaits, sizes, names, swallowed exceptions, documentation."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.operations import OPERATIONS
from eventlog import events, values

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("eventlog", "tools", "daemon")
MAY_IMPORT = {"eventlog": {"eventlog"}, "tools": {"eventlog", "tools"}, "daemon": {"eventlog", "tools", "daemon"}}
THIRD_PARTY = {"eventlog": {"msgspec"}, "tools": {"msgspec", "PIL"}}
ONLY_IN = {
    "httpx": {"daemon/courier.py"},
    "mcp": {"daemon/mcp_server.py"},
    "mcp_types": {"daemon/mcp_server.py"},
    "fcntl": {"eventlog/disk.py"},
    "PIL": {"daemon/offline.py", "tools/pixels.py"},  # the first only draws
}
LONGER_FILES = {  # each with its reason
    # One skin in one file, because mcp may be imported in one file only: tools, resources, prompts and completion.
    "daemon/mcp_server.py": 640,
}
FORBIDDEN_NAMES = {"manager", "handler", "service", "helper", "util", "utils", "processor", "context", "base", "core", "common"}


def sources() -> Iterator[tuple[str, ast.Module]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text("utf-8"))


def imported(tree: ast.Module) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


def test_imports_follow_the_one_arrow() -> None:
    for name, tree in sources():
        package = name.split("/")[0]
        assert imported(tree) & set(PACKAGES) <= MAY_IMPORT[package], name


def test_only_the_daemon_needs_more_than_data_libraries() -> None:
    for name, tree in sources():
        package = name.split("/")[0]
        if package in THIRD_PARTY:
            foreign = imported(tree) - set(sys.stdlib_module_names) - set(PACKAGES)
            assert foreign <= THIRD_PARTY[package], name


def test_some_libraries_are_known_to_one_file_only() -> None:
    for name, tree in sources():
        for library, files in ONLY_IN.items():
            assert library not in imported(tree) or name in files, f"{name} imports {library}"


def test_only_the_daemon_awaits() -> None:
    waiting = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    for name, tree in sources():
        if not name.startswith("daemon/"):
            assert not any(isinstance(node, waiting) for node in ast.walk(tree)), name


def test_files_functions_and_parameter_lists_stay_small() -> None:
    for name, tree in sources():
        lines = len((ROOT / name).read_text("utf-8").splitlines())
        assert lines <= LONGER_FILES.get(name, 400), f"{name} has {lines} lines"
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or 0) - node.lineno + 1
                assert length <= 50, f"{name}: {node.name} has {length} lines"
                parameters = [a for a in node.args.args + node.args.kwonlyargs if a.arg not in ("self", "cls")]
                assert len(parameters) <= 6, f"{name}: {node.name} takes {len(parameters)} parameters"


def test_every_module_says_what_it_is() -> None:
    for name, tree in sources():
        assert ast.get_docstring(tree), name


def test_nothing_is_named_after_nothing() -> None:
    for name, tree in sources():
        words = set(re.split(r"[/_.]", name)) | {
            word.lower()
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
            for word in re.findall(r"[A-Z][a-z]+", node.name)
        }
        found = words & FORBIDDEN_NAMES
        assert not found - {"context"} and ("context" not in found or name == "daemon/mcp_server.py"), f"{name}: {found}"


def catches(tree: ast.Module) -> Iterator[ast.ExceptHandler]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler))


def caught_names(handler: ast.ExceptHandler) -> set[str]:
    if handler.type is None:
        return {"BaseException"}
    return {node.id for node in ast.walk(handler.type) if isinstance(node, ast.Name)} | {
        node.attr for node in ast.walk(handler.type) if isinstance(node, ast.Attribute)
    }


def test_there_is_one_bulkhead_and_it_lets_a_broken_log_through() -> None:
    bulkheads = [name for name, tree in sources() for handler in catches(tree) if "Exception" in caught_names(handler)]
    assert bulkheads == ["daemon/operations.py"]
    tree = ast.parse((ROOT / "daemon/operations.py").read_text("utf-8"))
    (attempt,) = (
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Try) and any("Exception" in caught_names(h) for h in node.handlers)
    )
    first = attempt.handlers[0]
    assert caught_names(first) == {"EventLogError", "PersonAsked"}  # the second is a question, not a fault
    assert isinstance(first.body[0], ast.Raise)


def test_cancellation_is_never_swallowed() -> None:
    for name, tree in sources():
        for handler in catches(tree):
            if caught_names(handler) & {"BaseException", "Cancelled", "KeyboardInterrupt"}:
                if name == "daemon/cli.py" or name == "daemon/bridge.py":  # the ends of the program, where trio is over
                    continue
                assert isinstance(handler.body[-1], ast.Raise), f"{name}:{handler.lineno}"


def test_the_environment_is_read_in_one_place() -> None:
    may = {"daemon/config.py", "daemon/bridge.py", "daemon/__main__.py", "daemon/demo.py", "daemon/cli.py"}
    for name, tree in sources():
        reads = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr in ("environ", "getenv")]
        assert not reads or name in may, name


def event_classes() -> list[type]:
    others = (events.Commit, events.FactOfJob, events.FactOfOver)
    return [c for c in vars(events).values() if isinstance(c, type) and issubclass(c, values.Value) and c not in others]


@pytest.mark.parametrize("event", [c for c in event_classes() if c.__module__ == events.__name__])
def test_facts_are_past_tense_frozen_and_say_what_they_mean(event: type) -> None:
    last = re.findall(r"[A-Z][a-z]+", event.__name__)[-1]
    assert last.endswith(("ed", "Forgotten")), event.__name__
    assert event.__doc__ and "(" not in event.__doc__.splitlines()[0]
    assert event.__struct_config__.frozen  # type: ignore[attr-defined]
    assert event.__struct_config__.tag == event.__name__  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_is_documented_and_says_what_it_costs(name: str) -> None:
    operation = OPERATIONS[name]
    assert operation.title and len(operation.description.encode()) <= 2048
    assert re.fullmatch(r"[a-z0-9_]{1,40}", name)
    if not operation.for_people:
        assert "COSTS MONEY" in operation.description if operation.draw else "Free" in operation.description
    readme = (ROOT / "README.md").read_text("utf-8")
    assert operation.for_people or f"`{name}`" in readme, f"{name} is not in the README"


def test_the_top_level_holds_only_what_the_layout_names() -> None:
    allowed = {
        "pyproject.toml",
        "README.md",
        "README.ja.md",
        "LICENSE",
        "build.spec",
        "daemon",
        "tools",
        "eventlog",
        "tests",
        ".ci",
    }
    ignored = {"build", "dist", "node_modules"}
    found = {path.name for path in ROOT.iterdir() if not path.name.startswith(".") or path.name == ".ci"}
    assert {name for name in found if not name.endswith(".egg-info")} - ignored <= allowed
