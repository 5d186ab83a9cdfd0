"""Structure as a test: imports, what the cores may use, sizes, docstrings, generated code, hosts, paths.

Each checker is a function from text to what is wrong with it, and has a test that shows that it can fail.
"""

from __future__ import annotations

import ast
import filecmp
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("dtp", "shell", "wal", "coordinator", "participant_agent", "xacoord", "deploy", "tests", "docs")
OURS = frozenset(PACKAGES)
MAX_FILE, MAX_FUNCTION = 500, 70

# Longest prefix wins: a file may import these of ours (a package includes what is below it) and no others.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "dtp": ("dtp",),
    "shell": ("shell", "dtp"),
    "wal": ("wal", "dtp.errors"),
    "coordinator": ("coordinator", "dtp", "wal", "shell", "participant_agent.v1"),
    "coordinator/core": ("coordinator.core", "dtp"),
    # The wiring of agents in the coordinator's process.
    "coordinator/embedded.py": ("coordinator", "dtp", "shell", "participant_agent"),
    "coordinator/local.py": ("coordinator", "dtp", "shell", "participant_agent"),
    "participant_agent": ("participant_agent", "dtp", "shell"),
    "participant_agent/core": ("participant_agent.core", "dtp"),
    "xacoord": ("xacoord", "dtp", "coordinator.v1", "participant_agent.v1"),
}
# All that a pure core may know of Python: nothing that waits, draws, reads a clock or opens a file.
PURE = frozenset(
    {"__future__", "abc", "bisect", "collections", "contextlib", "copy", "dataclasses", "enum", "functools"}
    | {"heapq", "itertools", "math", "operator", "re", "string", "types", "typing"}
)
CORES = ("coordinator/core", "participant_agent/core", "dtp")
# Registries and mirrors, somebody's home, and the place of this very copy.
HOSTS = re.compile(
    rf"""(?xi) \b(?: (?:test\.)?pypi\.org | files\.pythonhosted\.org | (?:deb|ftp|security)\.debian\.org
    | [\w.-]*(?:artifactory|nexus|devpi)[\w-]*\.[a-z]{{2,}} | proxy\.golang\.org | registry\.npmjs\.org )\b
    | (?<![\w.~]) (?: /home/(?!user\b)\w+ | /Users/\w+ | /[r]oot/ | {re.escape(str(ROOT))}(?!\w) )"""
)


def python_files() -> Iterator[Path]:
    """Hand-written Python files, relative to the repository."""
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            if not re.search(r"_pb2(_grpc)?\.py$", path.name):
                yield path.relative_to(ROOT)


FILES = list(python_files())
IDS = [str(path) for path in FILES]


def text_of(path: Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


# Imports


def imports(source: str, path: Path) -> Iterator[str]:
    """Absolute names of the imported modules, wherever in the file; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.parts[:-1]
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*base, *([node.module] if node.module else [])))
            yield from (f"{module}.{alias.name}" for alias in node.names)


def is_below(name: str, prefixes: Iterable[str]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def forbidden_imports(source: str, path: Path) -> list[str]:
    """Imports against the direction: of our packages, of MySQLdb, and in a core of anything impure."""
    found = []
    places = [place for place in MAY_IMPORT if path.is_relative_to(place)]
    allowed = MAY_IMPORT[max(places, key=len)] if places else tuple(OURS)
    is_core = any(path.is_relative_to(core) for core in CORES)
    for name in imports(source, path):
        top = name.partition(".")[0]
        if top in OURS:
            if not is_below(name, allowed):
                found.append(name)
        elif top == "MySQLdb":
            if is_core or path.parts[0] not in ("participant_agent", "deploy", "tests"):
                found.append(name)
        elif is_core and top not in PURE:
            found.append(name)
    return found


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_imports_go_one_way(path: Path) -> None:
    assert forbidden_imports(text_of(path), path) == []


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("dtp/x.py", "import wal"),
        ("dtp/x.py", "import time"),
        ("shell/x.py", "from coordinator import config"),
        ("wal/x.py", "from dtp import Xid"),
        ("coordinator/x.py", "import participant_agent.agent"),
        ("coordinator/x.py", "from participant_agent import agent"),
        ("coordinator/x.py", "import MySQLdb"),
        ("coordinator/x.py", "def f():\n    from tests import anything"),
        ("coordinator/core/x.py", "import asyncio"),
        ("coordinator/core/x.py", "from time import monotonic"),
        ("coordinator/core/x.py", "import google.protobuf"),
        ("coordinator/core/x.py", "from coordinator import driver"),
        ("coordinator/core/x.py", "from .. import driver"),
        ("coordinator/core/x.py", "from coordinator.v1 import record_pb2"),
        ("participant_agent/x.py", "from coordinator.v1 import coordinator_pb2"),
        ("participant_agent/core/x.py", "import MySQLdb"),
        ("participant_agent/core/x.py", "from ..v1 import statement_pb2"),
        ("xacoord/x.py", "import coordinator.driver"),
        ("xacoord/x.py", "from coordinator import v2"),
    ],
)
def test_a_forbidden_import_is_found(place: str, line: str) -> None:
    assert len(forbidden_imports(line, Path(place))) == 1


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("wal/x.py", "from dtp.errors import Reason"),
        ("coordinator/x.py", "from participant_agent.v1 import statement_pb2"),
        ("participant_agent/core/x.py", "from .effects import Ok"),
        ("participant_agent/x.py", "import MySQLdb.cursors"),
        ("deploy/x.py", "import coordinator.daemon, participant_agent.daemon"),
    ],
)
def test_an_allowed_import_is_allowed(place: str, line: str) -> None:
    assert forbidden_imports(line, Path(place)) == []


# Sizes and docstrings


def too_long(source: str) -> list[str]:
    """What is longer than a reader likes."""
    lines = source.count("\n")
    found = [f"{lines} lines"] if lines > MAX_FILE else []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            length = (node.end_lineno or node.lineno) - first + 1
            if length > MAX_FUNCTION:
                found.append(f"{node.name}: {length} lines")
    return found


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_files_and_functions_are_short(path: Path) -> None:
    assert too_long(text_of(path)) == []


def test_something_too_long_is_found() -> None:
    assert too_long("x = 1\n" * 500) == []
    assert too_long("x = 1\n" * 501) == ["501 lines"]
    assert too_long("def f():\n" + "    x = 1\n" * 69) == []
    assert too_long("@a\ndef f():\n" + "    x = 1\n" * 69) == ["f: 71 lines"]
    assert too_long("class A:\n    async def g(self):\n" + "        x = 1\n" * 80) == ["g: 81 lines"]


def without_docstring(source: str, path: Path) -> bool:
    """A module that does not say why it exists. Empty markers of generated packages need not."""
    module = ast.parse(source)
    is_private = path.name.startswith("_") and path.name != "__init__.py"
    return bool(module.body) and not is_private and not ast.get_docstring(module)


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_modules_say_why_they_exist(path: Path) -> None:
    assert not without_docstring(text_of(path), path)


def test_a_missing_docstring_is_found() -> None:
    assert without_docstring("x = 1\n", Path("dtp/x.py"))
    assert without_docstring("# why\nx = 1\n", Path("dtp/__init__.py"))
    assert not without_docstring('"""Why."""\n', Path("dtp/x.py"))
    assert not without_docstring("", Path("coordinator/v1/__init__.py"))


def test_all_places_are_looked_at() -> None:
    assert len(FILES) > 100
    assert {path.parts[0] for path in FILES} == OURS
    covered = {p.name for p in ROOT.iterdir() if p.is_dir() and any(p.glob("*.py")) and p.name[0] != "."}
    assert covered <= OURS, "a folder with Python that no rule looks at"


# Generated code


def differences(generated: Path, committed: Path) -> list[str]:
    """Files that are missing, left over or not the same, byte for byte."""
    found = []
    for package in ("coordinator", "participant_agent"):
        names = {p.relative_to(generated) for p in (generated / package / "v1").rglob("*.py*")}
        present = {p.relative_to(committed) for p in (committed / package / "v1").glob("*.py*")}
        for name in sorted(names | present):
            both = name in names and name in present
            if not both or not filecmp.cmp(generated / name, committed / name, shallow=False):
                found.append(str(name))
    return found


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What proto/generate.sh makes now. deploy/setup.sh --dev makes the tools in .venv/codegen."""
    out = tmp_path_factory.mktemp("generated")
    for package in ("coordinator", "participant_agent"):
        (out / package / "v1").mkdir(parents=True)
    python = ROOT / ".venv/codegen/bin/python"
    subprocess.run(["bash", ROOT / "proto/generate.sh", python, out], check=True, timeout=120)
    return out


def test_generated_code_is_current(generated: Path) -> None:
    assert differences(generated, ROOT) == []


def test_outdated_generated_code_is_found(generated: Path, tmp_path: Path) -> None:
    for path in generated.rglob("*.py*"):
        copy = tmp_path / path.relative_to(generated)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    assert differences(generated, tmp_path) == []
    (tmp_path / "coordinator/v1/record_pb2.py").write_text("outdated")
    (tmp_path / "coordinator/v1/gone_pb2.py").write_text("left over")
    (tmp_path / "participant_agent/v1/statement_pb2.py").unlink()
    assert differences(generated, tmp_path) == [
        "coordinator/v1/gone_pb2.py",
        "coordinator/v1/record_pb2.py",
        "participant_agent/v1/statement_pb2.py",
    ]


# Hosts and paths


def machine_names(text: str) -> list[str]:
    """Hosts of package registries and paths of one machine."""
    return [match[0] for match in HOSTS.finditer(text)]


def tracked() -> list[Path]:
    """What the repository holds, or would with the next commit."""
    command = ["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    return [Path(name) for name in listed if name and (ROOT / name).is_file()]


def test_no_file_names_a_registry_or_a_machine() -> None:
    found = {}
    for path in tracked():
        names = machine_names((ROOT / path).read_bytes().decode("utf-8", "replace"))
        if names:
            found[str(path)] = names
    assert found == {}


def test_a_host_or_a_path_of_a_machine_is_found() -> None:
    # Put together here, so that this file does not name them either.
    hosts = [".".join(parts) for parts in (("pypi", "org"), ("deb", "debian", "org"), ("nexus", "example"))]
    paths = ["/".join(("", "home", "ann", "x")), "/".join(("", "root", "x")), f"{ROOT}/docs"]
    for bad in (*hosts, *paths):
        assert len(machine_names(f"copied from {bad}")) == 1, bad
    good = (
        "/usr/bin/env ~/root/x docs/home/ann https://github.com/x/y /var/lib/xacoord tests/root/x /home/user"
    )
    assert machine_names(good) == []
