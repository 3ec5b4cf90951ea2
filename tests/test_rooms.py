"""experiment/: which room may know which, and how far it is from a command to a score."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMALL_DATA, SMALL_NET

import main
from detection import Detector, is_anomalous

EXPERIMENT = ROOT / "experiment"
ROOMS = [
    "options",
    "machine",
    "plan",
    "record",
    "show",
    "train",
    "scale",
    "use",
    "serve",
    "run",
]  # each knows those before it
APART = {
    "use": {"plan", "train", "scale"},
    "serve": {"plan", "train", "scale"},
}  # what a room has nothing to do with, though it stands before
FILES = {path.relative_to(EXPERIMENT).with_suffix("").as_posix(): path for path in sorted(EXPERIMENT.rglob("*.py"))}


def room_of(name: str) -> str:
    """The room of a file; those that lie beside the rooms say what a command line asks for, but for run."""
    return name if name == "run" or (EXPERIMENT / name).is_dir() else "options"


def imported(path: Path) -> set[str]:
    """The rooms that a file of experiment/ imports from."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    modules = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    modules += [name.name for node in nodes if isinstance(node, ast.Import) for name in node.names]
    return {room_of(module.split(".")[1]) for module in modules if module.startswith("experiment.")}


@pytest.mark.parametrize("name", FILES)
def test_rooms_know_those_before_them_alone(name):
    own = room_of(name.split("/")[0])
    known = set(ROOMS[: ROOMS.index(own) + 1]) - APART.get(own, set())
    assert imported(FILES[name]) <= known


def test_rooms_say_what_they_are_for_and_cost_nothing():
    for room in (path for path in EXPERIMENT.iterdir() if (path / "__init__.py").is_file()):
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
    """main.cli, which is not called here, is the sixth."""
    words = ["--results_path", tmp_path / "results", *SMALL_NET, "dataset", *SMALL_DATA, "-d", "nut", "mvtec", mvtec]
    main.main([str(word) for word in words], standalone_mode=False)
    evaluated = [way for way in ways if "evaluate" in way]
    assert evaluated and all(way[-4:] == ("run", "work", "train", "evaluate") for way in evaluated), ways
    assert all(len(way) <= 5 for way in evaluated), ways


def test_six_functions_lie_between_predict_and_a_score(ways, mvtec, model, tmp_path):
    words = ["predict", model, mvtec / "bolt/test", "--out", tmp_path / "out"]
    main.main([str(word) for word in words], standalone_mode=False)
    assert ways and all(len(way) <= 5 for way in ways), ways


def test_a_score_at_the_threshold_is_normal():
    scores = [1.0, 1.5, 2.0]
    decisions = [is_anomalous(score, 1.5) for score in scores]
    assert decisions == is_anomalous(torch.tensor(scores), 1.5).tolist() == [False, False, True]
    assert is_anomalous(torch.tensor(scores).numpy(), 1.5).tolist() == decisions
