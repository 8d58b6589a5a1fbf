"""The rules of the house that a program can hold: imports, style, names, the README."""

import ast
import graphlib
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import command_reference

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "manychar"
FOLDERS = (  # from the lowest to the highest: a module imports from its own folder or a lower one
    "numerics",
    "protocol",
    "processes",
    "storage",
    "network",
    "observability",
    "fleet",
    "verification",
    "api",
    "cli",
)
MODULES = sorted(SOURCE.rglob("*.py"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
CODE_PAGE = (SOURCE / "README.md").read_text(encoding="utf-8")
TOP_LEVEL = {"pyproject.toml", "README.md", "src", "tests", "deploy", "LICENSE"}


def level_of(module: str) -> int | None:
    """Return the level of `manychar.<folder>…`; None for the package itself and its entry."""
    parts = module.split(".")
    return FOLDERS.index(parts[1]) if len(parts) > 1 and parts[1] in FOLDERS else None


def name_of(path: Path) -> str:
    """Return a source file's module name."""
    return ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts)


def imports_of(path: Path) -> list[str]:
    """Return every module that a file imports, wherever in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_strictly_downwards_between_folders(path: Path) -> None:
    here = level_of(name_of(path))
    for imported in imports_of(path):
        there = level_of(imported) if imported.startswith("manychar.") else None
        if here is not None and there is not None:
            assert there <= here, f"{name_of(path)} imports {imported}"


def test_no_module_imports_itself_through_others() -> None:
    modules = {name_of(path).removesuffix(".__init__"): path for path in MODULES}
    graph = {
        name: {
            target
            for imported in imports_of(path)
            for target in (imported, imported.rpartition(".")[0])
            if target in modules and target != name and path.name != "__init__.py"
        }
        for name, path in modules.items()
    }
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        pytest.fail(f"modules import each other in a circle: {error.args[1]}")


@pytest.mark.parametrize(
    "path", [path for path in MODULES if level_of(name_of(path)) == 1], ids=name_of
)
def test_the_protocol_does_no_io(path: Path) -> None:
    allowed = {
        "abc",
        "collections",
        "dataclasses",
        "enum",
        "functools",
        "heapq",
        "itertools",
        "math",
        "operator",
        "re",
        "statistics",
        "struct",
        "types",
        "typing",
        "zlib",
    }
    allowed |= {"manychar", "msgpack", "numpy"}
    assert {name.split(".")[0] for name in imports_of(path)} <= allowed


@pytest.mark.parametrize(
    "path", [path for path in MODULES if level_of(name_of(path)) == 0], ids=name_of
)
def test_the_numerics_need_numpy_only(path: Path) -> None:
    standard = sys.stdlib_module_names
    foreign = {name.split(".")[0] for name in imports_of(path)} - standard - {"manychar", "numpy"}
    assert not foreign


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_module_is_a_drawer(path: Path) -> None:
    assert not re.search(r"util|helper|manager|base|misc|common", path.stem)


MODULE_LINES, FUNCTION_LINES, CLASS_METHODS, CLASS_ATTRIBUTES = 350, 50, 15, 12
REASON = re.compile(r"#.*\b(methods|attributes|fields)\b")
"""A comment above a larger class gives the reason: it names what there is more of."""


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_fits_in_one_reading(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MODULE_LINES
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= FUNCTION_LINES, f"{node.name}: {length} lines"
        elif isinstance(node, ast.ClassDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            excused = bool(REASON.search(lines[first - 2])) if first > 1 else False
            methods, attributes = sizes_of(node)
            assert excused or methods <= CLASS_METHODS, f"{node.name}: {methods} methods"
            assert excused or attributes <= CLASS_ATTRIBUTES, (
                f"{node.name}: {attributes} attributes"
            )


def sizes_of(node: ast.ClassDef) -> tuple[int, int]:
    """Return how many methods and attributes a class has; fields of a dataclass are attributes."""
    methods = [part for part in node.body if isinstance(part, ast.FunctionDef)]
    attributes = {
        part.target.id
        for part in node.body
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)
    }
    stores = (
        part
        for method in methods
        for part in ast.walk(method)
        if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store)
    )
    for part in stores:
        if isinstance(part.value, ast.Name) and part.value.id == "self":
            attributes.add(part.attr)
    return len(methods), len(attributes)


RETIRED = re.compile(
    r"\b(barred|verdicts?|judges?|judging|roster|attendance|for whom|start afresh|knock(s|ing)?"
    r"|bury|seat|crowd|manners|whoever|another life|held[- ]out|sinks?|crew|greets?|greeting)\b",
    re.IGNORECASE,
)
PAGES = [ROOT / "README.md", *MODULES, *sorted((ROOT / "deploy").rglob("*.md"))]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_words_are_the_fields_own(path: Path) -> None:
    found = RETIRED.search(path.read_text(encoding="utf-8"))
    assert found is None, f"retired term: {found[0]}"


def test_nothing_else_stands_at_the_top_level() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    top = {name.split("/")[0] for name in listed}
    assert {name for name in top if not name.startswith(".")} <= TOP_LEVEL


@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "format", "--check", "."],
        ["ruff", "check", "."],
        pytest.param(["mypy"], marks=pytest.mark.long),
    ],
    ids=["ruff format", "ruff check", "mypy"],
)
def test_the_style_holds(command: list[str]) -> None:
    tool = [str(Path(sys.executable).with_name(command[0])), *command[1:]]
    done = subprocess.run(tool, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_reference_is_the_command_lines() -> None:
    written = command_reference.REFERENCE.read_text(encoding="utf-8")
    assert written == command_reference.reference(), (
        "write it anew: python -m tests.command_reference"
    )


@pytest.mark.parametrize("path", [path for path, _ in command_reference.commands()])
def test_every_command_has_help_with_an_example(path: str) -> None:
    command = dict(command_reference.commands())[path]
    assert command.help
    assert command.epilog.startswith(f"Example: {path}")
    for parameter in command.params:
        assert parameter.hidden or parameter.help, f"{path}: {parameter.name}"


def test_the_readme_gives_a_reason_for_each_dependency() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[(.*?)\]", project, re.DOTALL | re.MULTILINE)
    assert block
    for requirement in re.findall(r'"([^"]+)"', block[1]):
        name, bound = requirement.split(">=")
        assert f"| {name} ≥ {bound} |" in CODE_PAGE


def test_the_first_screen_has_the_two_lines_and_ci_runs_the_second() -> None:
    first_screen = README.splitlines()[:40]
    lines = [line for line in first_screen if line.startswith("python3 -m venv")]
    assert [line.rsplit("/", 1)[1] for line in lines] == ["manychar train", "pytest"]
    assert "README.md" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_version_is_one() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    version = re.search(r'^version = "(.+)"', project, re.MULTILINE)
    assert version
    assert f'__version__ = "{version[1]}"' in (SOURCE / "__init__.py").read_text(encoding="utf-8")


def test_a_step_in_a_text_has_thousands_separators() -> None:
    """As elsewhere, so that a search for a step finds it in every text."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts = node.values if isinstance(node, ast.JoinedStr) else []
            for before, value in itertools.pairwise(parts):
                if not (isinstance(before, ast.Constant) and isinstance(value, ast.FormattedValue)):
                    continue
                is_text = isinstance(value.value, ast.Call) and "join" in ast.unparse(value.value)
                if re.search(r"(?<!--)\b[Ss]teps? (up to )?$", str(before.value)) and not is_text:
                    form = ast.unparse(value.format_spec) if value.format_spec else ""
                    named = ast.unparse(value.value).startswith("step_of(")  # it has them
                    assert "," in form or named, f"{path}: {ast.unparse(node)}"


FORBIDDEN = {
    "pickle": r"\bpickle\b(?!')",
    "eval or exec": r"(?<![\w.])(eval|exec)\(",
    "objects from the wire": r"(recv|send)_pyobj",
    "allow_pickle other than False": r"allow_pickle(?!=False)",
    "a wildcard bind": r"(bind|DEFAULT_BIND).*(\*:|0\.0\.0\.0|\[::\])",
    "a shell": r"shell=True|os\.system",
    "an unsafe loader": r"\b(marshal|shelve|yaml\.load|dill|cloudpickle)\b",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_nothing_dangerous_stands_anywhere(what: str) -> None:
    for path in MODULES:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            code = line.split("#")[0]
            assert not re.search(FORBIDDEN[what], code), f"{path}:{number}: {what}: {line}"
