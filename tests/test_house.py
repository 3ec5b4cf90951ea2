"""The house: which modules may import which, and how long a file may be (CONTRIBUTING.md draws it)."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from commands import ROOT

FLOORS = {
    "main": 5,
    "cli": 4,
    "experiment": 3,
    "simplenet": 2,
    "methods": 2,
    "detection": 1.5,
    "backbones": 1,
    "datasets": 1,
    "metrics": 1,
    "errors": 0,
    "files": 0,
    "late": 0,
    "options": 0,
}
NO_PRODUCT = ("tests", "benchmarks")
ON_ONE_FLOOR = {("methods", "simplenet")}  # the package that lists all detectors; rooms do not know each other else
LINES = {"main.py": 80, "experiment": 300}  # at most, of files and of those in folders
MOST_LINES = 350


def modules(root: Path) -> dict[str, Path]:
    """The product's modules by their dotted names; a package's is that of its __init__.py."""
    files = [*root.glob("*.py"), *(file for top in root.iterdir() if _is_room(top) for file in top.rglob("*.py"))]
    named = {".".join(path.relative_to(root).with_suffix("").parts): path for path in files}
    return {name.removesuffix(".__init__"): path for name, path in named.items()}


def _is_room(folder: Path) -> bool:
    return folder.is_dir() and folder.name not in NO_PRODUCT and not folder.name.startswith(".")


def imported(name: str, known: dict[str, Path]) -> set[str]:
    """The modules that one imports anywhere: under TYPE_CHECKING and inside functions too.

    Whoever imports a module also imports the packages around it, but those that the importing one is in itself: they
    are there already.
    """
    tree = ast.parse(known[name].read_text())
    package = name if known[name].name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for target in _targets(tree, package, known):
        parts = target.split(".")
        around = {".".join(parts[:i]) for i in range(1, len(parts))}
        found |= {target} | {own for own in around if not f"{name}.".startswith(f"{own}.")}
    return (found & known.keys()) - {name}


def _targets(tree: ast.AST, package: str, known: dict[str, Path]) -> Iterator[str]:
    """The modules that import statements name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield inner if inner in known else base


def circles(imports: dict[str, set[str]]) -> list[str]:
    """A circle of imports, each the importer of the next; empty where there is none."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return error.args[1][::-1]
    return []


def wrong_ways(imports: dict[str, set[str]]) -> list[str]:
    """Imports that do not go down to a lower floor."""

    def is_down(importer: str, other: str) -> bool:
        one, two = importer.partition(".")[0], other.partition(".")[0]
        if one == two or (importer, two) in ON_ONE_FLOOR:
            return True
        return FLOORS[one] > FLOORS[two] or FLOORS[one] == FLOORS[two] == 0

    pairs = ((importer, other) for importer, others in imports.items() for other in others)
    return sorted(f"{importer} imports {other}" for importer, other in pairs if not is_down(importer, other))


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    known = modules(ROOT)
    return {name: imported(name, known) for name in known}


def test_every_room_has_a_floor(imports):
    assert {name.partition(".")[0] for name in imports} <= FLOORS.keys()


def test_imports_go_down(imports):
    assert wrong_ways(imports) == []


def test_imports_go_in_no_circle(imports):
    assert circles(imports) == []


@pytest.mark.parametrize("place", ["main.py", "experiment", "the rest"])
def test_files_are_short(place):
    paths = [path.relative_to(ROOT) for path in modules(ROOT).values()]
    own = [path for path in paths if (path.parts[0] if path.parts[0] in LINES else "the rest") == place]
    lengths = {str(path): len((ROOT / path).read_text().splitlines()) for path in own}
    most = LINES.get(place, MOST_LINES)
    assert lengths
    assert {path: length for path, length in lengths.items() if length > most} == {}


@pytest.mark.parametrize(
    ("files", "circle", "wrong"),
    [
        ({"datasets/a.py": "import errors", "errors.py": ""}, [], []),
        ({"datasets/a.py": "from backbones import b", "backbones/b.py": ""}, [], ["datasets.a imports backbones.b"]),
        ({"errors.py": "import files", "files.py": ""}, [], []),
        ({"methods/__init__.py": "import simplenet", "simplenet/__init__.py": ""}, [], []),
        (
            {"methods/x.py": "import simplenet", "simplenet/__init__.py": ""},
            [],
            ["methods.x imports simplenet"],
        ),
        (
            {"backbones/b.py": "def late():\n    import experiment.job", "experiment/job.py": ""},
            [],
            ["backbones.b imports experiment.job"],
        ),
        (
            {
                "datasets/a.py": "if TYPE_CHECKING:\n    from datasets.b import B",
                "datasets/b.py": "from .a import A",
            },
            ["datasets.a", "datasets.b", "datasets.a"],
            [],
        ),
        (
            {
                "datasets/a.py": "from datasets.t.inner import B",
                "datasets/t/__init__.py": "from datasets import a",
                "datasets/t/inner.py": "",
            },
            ["datasets.a", "datasets.t", "datasets.a"],
            [],
        ),
        ({"datasets/__init__.py": "from datasets.a import A", "datasets/a.py": "import datasets.b"}, [], []),
    ],
)
def test_what_is_wrong_is_found(tmp_path, files, circle, wrong):
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    known = modules(tmp_path)
    found = {name: imported(name, known) for name in known}
    assert set(circles(found)) == set(circle)
    assert wrong_ways(found) == wrong
