"""The house: which room may know which, and how far it is from a command to a score."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMALL_DATA, SMALL_NET

import main
from detection import Detector, is_anomalous

ROOMS = ["config", "machine", "plan", "record", "show", "train", "scale", "use", "run"]  # each knows those before it
APART = {"use": {"plan", "train", "scale"}}  # what a room has nothing to do with, though it stands before
FILES = sorted((ROOT / "experiment").rglob("*.py"))


def room_of(module: str) -> str:
    return module.split(".")[1]


def imported(path: Path) -> set[str]:
    """The rooms that a file of experiment/ imports from."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    modules = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    modules += [name.name for node in nodes if isinstance(node, ast.Import) for name in node.names]
    return {room_of(module) for module in modules if module.startswith("experiment.")}


@pytest.mark.parametrize(
    "path", FILES, ids=lambda path: path.relative_to(ROOT / "experiment").with_suffix("").as_posix()
)
def test_rooms_know_those_below_alone(path):
    parts = path.relative_to(ROOT / "experiment").with_suffix("").parts
    assert len(path.read_text().splitlines()) <= (350 if parts == ("config",) else 300)
    if parts == ("__init__",):
        assert not imported(path)
        return
    own = ROOMS.index(parts[0])
    above = {name for name in imported(path) - {parts[0]} if ROOMS.index(name) > own}
    assert not above | (imported(path) & APART.get(parts[0], set()))


def test_rooms_say_what_they_are_for_and_cost_nothing():
    for room in (path for path in (ROOT / "experiment").iterdir() if (path / "__init__.py").is_file()):
        (docstring,) = ast.parse((room / "__init__.py").read_text()).body
        assert "\n" not in docstring.value.value and room.name in ROOMS
    code = "import sys, experiment; print(sorted({'torch', 'numpy', 'click'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


@pytest.fixture
def ways(monkeypatch) -> set[tuple[str, ...]]:
    """The functions of ours that called one another down to a score, of every way there."""
    score, found = Detector.score, set()

    def watched(self, embeddings):
        names, frame = [], sys._getframe(1)
        while frame is not None:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(ROOT) and not path.is_relative_to(ROOT / "tests") and ".venv" not in path.parts:
                names.append(frame.f_code.co_name)
            frame = frame.f_back
        found.add(tuple(reversed(names)))
        return score(self, embeddings)

    monkeypatch.setattr(Detector, "score", watched)
    return found


def test_six_functions_lie_between_the_command_line_and_a_score(ways, mvtec, tmp_path):
    """main.cli is the first of them; the others are those that are asserted."""
    words = ["--results_path", tmp_path / "results", *SMALL_NET, "dataset", *SMALL_DATA, "-d", "nut", "mvtec", mvtec]
    main.main([str(word) for word in words], standalone_mode=False)
    assert ("execute", "run", "work", "train", "evaluate") in ways
    longer = {way for way in ways if len(way) > 5 and way[-1] == "evaluate"}
    assert not longer


def test_six_functions_lie_between_predict_and_a_score(ways, mvtec, model, tmp_path):
    words = ["predict", model, mvtec / "bolt/test", "--out", tmp_path / "out"]
    main.main([str(word) for word in words], standalone_mode=False)
    assert ways and all(len(way) <= 5 for way in ways), ways


def test_a_score_at_the_threshold_is_normal():
    scores = [1.0, 1.5, 2.0]
    decisions = [is_anomalous(score, 1.5) for score in scores]
    assert decisions == is_anomalous(torch.tensor(scores), 1.5).tolist() == [False, False, True]
    assert is_anomalous(torch.tensor(scores).numpy(), 1.5).tolist() == decisions
