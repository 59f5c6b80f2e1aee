"""The house rules that a machine can check, and a proof that each check can fail.

Every checker takes source text and returns the places that break its rule. It is run over the whole tree and over a
wrong sample that it must flag. Which rule exists for what reason: CONTRIBUTING.md.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {"sortify": ROOT / "sortify", "sortify_cli": ROOT / "cli"}
SOURCES = sorted(path for folder in PACKAGES.values() for path in folder.rglob("*.py"))
DOCS = ROOT / "docs"
TEXTS = sorted(
    path
    for pattern in ("*", ".ci/*", "docs/**/*", "examples/**/*", "sortify/**/*", "cli/**/*", "tests/**/*")
    for path in ROOT.glob(pattern)
    if path.suffix in {".md", ".py", ".toml", ".txt", ".yaml", ".yml", ".svg", ".json", ".html", ".css", ".js", ""}
    and path.is_file()
    and path.name != ".git"
    and path != Path(__file__)
)

LONGEST_FILE = 500
LONGEST_FUNCTION = 60
LONG_FUNCTIONS: dict[str, str] = {}
"""Functions that may be longer: "file:function" -> the reason."""

# The rooms in the order in which data flows. A module imports from its own row and from the rows above it.
ROOMS = [
    ["errors", "files", "difference"],
    ["graph"],
    ["sources"],
    ["capture"],
    ["axes"],
    ["depth"],
    ["plan"],
    ["rewriting"],
    ["costs"],
    ["space"],
    ["network"],
    ["proof"],
    ["models", "ordering"],
    ["convert"],
    ["native"],
    ["formats"],
    ["data", "tasks"],
    ["training"],
    ["evaluate"],
    ["reporting"],
]
ROW = {room: row for row, rooms in enumerate(ROOMS) for room in rooms}

KNOWN_HOSTS = {"arxiv.org", "docs.pytorch.org", "github.com", "keepachangelog.com", "www.apache.org", "www.w3.org"}
ONE_MACHINE = re.compile(
    r"(?<![\w.])/(?:home|root|opt|work|mnt|scratch)/"  # a folder of one machine
    r"|file://|--(?:extra-)?index-url[= ]\S*//"  # where its packages come from
    r"|\b(?:10|127|192\.168|172\.(?:1[6-9]|2\d|3[01]))(?:\.\d{1,3}){2,3}\b"  # an address
    r"|\b[\w-]+\.(?:internal|local|lan|corp)\b"
)
Found = list[str]


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method of a module."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def imported(node: ast.AST, module: str) -> Iterator[str]:
    """The absolute names of what one statement imports from this repository, as seen from `module`."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        parent = module.split(".")[: -node.level] if node.level else []
        stem = ".".join([*parent, *([node.module] if node.module else [])])
        names = [f"{stem}.{alias.name}" for alias in node.names]
    else:
        return
    yield from (name for name in names if name.split(".")[0] in PACKAGES)


def tuple_messages(source: str, module: str) -> Found:
    """Errors raised with several arguments after a string: the user would see a tuple."""
    raised = (node.exc for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Raise))
    calls = (call for call in raised if isinstance(call, ast.Call) and len(call.args) > 1)
    return [f"line {call.lineno}" for call in calls if text_like(call.args[0])]


def text_like(node: ast.expr) -> bool:
    """Whether an expression is written as a string."""
    if isinstance(node, ast.BinOp):
        return text_like(node.left)
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def long_files(source: str, module: str) -> Found:
    """A file over the size budget."""
    lines = source.count("\n")
    return [f"{lines} lines"] if lines > LONGEST_FILE else []


def long_functions(source: str, module: str) -> Found:
    """Functions over the size budget, docstring included."""
    sizes = ((f"{node.name}", (node.end_lineno or 0) - node.lineno + 1) for node in functions(ast.parse(source)))
    return [
        f"{name}: {size} lines"
        for name, size in sizes
        if size > LONGEST_FUNCTION and f"{module}:{name}" not in LONG_FUNCTIONS
    ]


def hidden_imports(source: str, module: str) -> Found:
    """Imports of this repository's modules inside functions: they hide a cycle."""
    inside = {node for function in functions(ast.parse(source)) for node in ast.walk(function)}
    return sorted({name for node in inside for name in imported(node, module)})


def later_rooms(source: str, module: str) -> Found:
    """Imports from a room that stands later in the flow; a module in no room at all is one as well."""
    if not module.startswith("sortify.") or module == "sortify.__init__":
        return []
    here = module.split(".")[1]
    if here not in ROW:
        return [f"{here} stands in no room: give it its place in ROOMS"]
    names = sorted({name for node in ast.walk(ast.parse(source)) for name in imported(node, module)})
    rooms = [(name, name.split(".")[1] if "." in name else "__init__") for name in names]
    return [name for name, room in rooms if room != here and ROW.get(room, len(ROOMS)) > ROW[here]]


def deep_imports(source: str, module: str) -> Found:
    """Imports of the command line that reach past the public names of sortify."""
    if not module.startswith("sortify_cli"):
        return []
    public = {"sortify", *(f"sortify.{name}" for name in (*public_names(), "__version__"))}
    names = {name for node in ast.walk(ast.parse(source)) for name in imported(node, module)}
    return sorted(name for name in names if name.split(".")[0] == "sortify" and name not in public)


def undescribed(source: str, module: str) -> Found:
    """A file that does not open with its purpose."""
    return [] if ast.get_docstring(ast.parse(source)) else ["no docstring"]


def local_names(source: str, module: str) -> Found:
    """Hosts, addresses and folders that exist only where the text was written."""
    hosts = re.findall(r"https?://([\w.-]+)", source)
    return [host for host in hosts if host not in KNOWN_HOSTS] + [hit.group() for hit in ONE_MACHINE.finditer(source)]


def public_names() -> list[str]:
    """`__all__` of the package, read without importing it."""
    path = PACKAGES["sortify"] / "__init__.py"
    tree = ast.parse(path.read_text("utf-8")) if path.exists() else ast.Module([], [])
    lists = [
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    return [str(name) for value in lists for name in ast.literal_eval(value)]


def undocumented(names: list[str], page: str) -> Found:
    """Names that a page of the documentation does not show as code."""
    return [name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", page)]


Checker = Callable[[str, str], Found]
LONG_BODY = "    pass\n" * LONGEST_FUNCTION
WRONG: dict[Checker, tuple[str, str]] = {
    tuple_messages: ("sortify.plan", 'raise ValueError("expected %s", name)\n'),
    long_files: ("sortify.plan", "pass\n" * (LONGEST_FILE + 1)),
    long_functions: ("sortify.plan", f"def work():\n{LONG_BODY}"),
    hidden_imports: ("sortify.plan", "def work():\n    from .errors import SortifyError\n"),
    later_rooms: ("sortify.plan", "from sortify.training import train\n"),
    deep_imports: ("sortify_cli.main", "from sortify.training import train\n"),
    undescribed: ("sortify.plan", "x = 1\n"),
    local_names: ("sortify.plan", "# see https://packages.example.net and /home/me/model.pt\n"),
}


def module_name(path: Path) -> str:
    """The dotted import name of a source file; packages end in `__init__`, so that relative imports count the same."""
    package, folder = next((name, folder) for name, folder in PACKAGES.items() if path.is_relative_to(folder))
    return ".".join([package, *path.relative_to(folder).with_suffix("").parts])


@pytest.mark.parametrize("check", WRONG, ids=lambda check: check.__name__)
def test_sources_keep_the_rule(check: Checker) -> None:
    hits = ((path, hit) for path in SOURCES for hit in check(path.read_text("utf-8"), module_name(path)))
    found = [f"{path.relative_to(ROOT)}: {hit}" for path, hit in hits]
    assert SOURCES
    assert found == []


def test_no_text_names_a_machine() -> None:
    found = [f"{path.relative_to(ROOT)}: {hit}" for path in TEXTS for hit in local_names(path.read_text("utf-8"), "")]
    assert len(TEXTS) > len(SOURCES)
    assert found == []


@pytest.mark.parametrize("check", WRONG, ids=lambda check: check.__name__)
def test_checker_flags_a_wrong_sample(check: Checker) -> None:
    module, source = WRONG[check]
    assert check(source, module) != []


@pytest.mark.parametrize(
    ("check", "module", "source"),
    [
        (tuple_messages, "sortify.plan", 'raise ValueError(f"expected {a}" + "b", a)\n'),
        (hidden_imports, "sortify.axes.rules", "class A:\n    def f(self):\n        import sortify.plan\n"),
        (later_rooms, "sortify.axes.rules", "from ..plan import Plan\n"),
        (later_rooms, "sortify.axes.__init__", "from .. import plan\n"),
        (later_rooms, "sortify.plan", "import sortify\n"),
        (later_rooms, "sortify.unheard_of", "x = 1\n"),
        (deep_imports, "sortify_cli.main", "import sortify.model\n"),
        (deep_imports, "sortify_cli.main", "from sortify import _private\n"),
        (local_names, "", "pip install --index-url=http://10.0.0.7/simple torch"),
    ],
)
def test_checker_flags_a_disguised_sample(check: Checker, module: str, source: str) -> None:
    assert check(source, module) != []


@pytest.mark.parametrize(
    ("check", "module", "source"),
    [
        (tuple_messages, "sortify.plan", 'raise OSError(2, "gone")\n'),
        (hidden_imports, "sortify.plan", "def work():\n    import json\n"),
        (later_rooms, "sortify.axes.rules", "from .algebra import Atom\nfrom ..errors import AxesError\n"),
        (later_rooms, "sortify.__init__", "from .training import train\n"),
        (deep_imports, "sortify_cli.main", "from .show import table\nimport sortify\n"),
        (local_names, "", "see https://arxiv.org/abs/2309.00255, use a/home/b and version 10.2"),
    ],
)
def test_checker_passes_a_right_sample(check: Checker, module: str, source: str) -> None:
    assert check(source, module) == []


def test_long_functions_that_are_allowed_exist_and_have_a_reason() -> None:
    names = {
        f"{module_name(path)}:{node.name}" for path in SOURCES for node in functions(ast.parse(path.read_text("utf-8")))
    }
    assert set(LONG_FUNCTIONS) <= names
    assert all(reason.strip() for reason in LONG_FUNCTIONS.values())


def test_every_room_stands_once_and_first_things_first() -> None:
    assert len(ROW) == sum(len(rooms) for rooms in ROOMS)
    assert ROW["capture"] < ROW["axes"] < ROW["plan"] < ROW["rewriting"] < ROW["proof"] < ROW["training"]


def test_every_public_name_is_documented() -> None:
    assert undocumented(public_names(), (DOCS / "api.md").read_text("utf-8")) == []


def test_an_undocumented_name_is_flagged() -> None:
    assert undocumented(["sortify", "load"], "only `sortify` and `reload` here") == ["load"]


def test_every_command_and_option_is_documented() -> None:
    sources = "\n".join(path.read_text("utf-8") for path in PACKAGES["sortify_cli"].rglob("*.py"))
    options = sorted(set(re.findall(r"[\"'](--[a-z][a-z-]+)[\"'/]", sources)))
    assert undocumented(options, (DOCS / "commands.md").read_text("utf-8")) == []
