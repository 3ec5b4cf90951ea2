"""Command lines at random, good and bad: each ends with an exit code that --help names, and none in a traceback."""

import os
import shutil
import sys

import click
import hypothesis.strategies as st
from conftest import SMALL, SMALL_DATA, small
from hypothesis import HealthCheck, given, settings

import main

LINES = int(os.environ.get("LINES_TRIED", "40"))  # more by hand: LINES_TRIED=500 pytest tests/test_command_lines.py
ENDLESS = str(10**12)  # a run of so many passes is long, not wrong
JUNK = ["", "x", "-1", "0", "nan", "inf", "1e300", ENDLESS, "../..", "=1+1", "\u00fc\n", "layer9", "None"]
WORDS = {
    "--layers_to_extract_from": ["layer1", "layer2", "0.layer1", "avgpool", "fc"],
    "--backbone_names": ["resnet18", "resnet10t.seed-3", "vit_base"],
    "--backbone_weights": ["random", "pretrained", "gone.pth"],
    "--subdatasets": ["bolt", "nut"],
}


def values(option):
    """Values that an option may take, and such as it must refuse."""
    kind = option.type
    name = option.opts[0] if option.opts[0] in WORDS else option.opts[-1]
    if name in WORDS:
        good = WORDS[name]
    elif isinstance(kind, click.Choice):
        good = list(kind.choices)
    elif isinstance(kind, click.FloatRange):
        good = ["0", "0.1", "0.5", "1", "2"]
    elif isinstance(kind, click.types.IntParamType):
        good = ["0", "1", "2", "3", "5"]
    else:
        good = ["a", "good", "train/good"]
    junk = [word for word in JUNK if word != ENDLESS or name not in ("--meta_epochs", "--gan_epochs", "--epochs")]
    return st.one_of([st.sampled_from(good)] * 5 + [st.sampled_from(junk)])


def options(command):
    """Some of a command's options with values, as words."""

    def words(option):
        name = st.sampled_from([one for one in option.opts + option.secondary_opts if one.startswith("-")])
        if option.is_flag:
            return name.map(lambda flag: [flag])
        return st.tuples(name, values(option)).map(list)

    known = [param for param in command.params if isinstance(param, click.Option) and "--help" not in param.opts]
    return st.lists(st.sampled_from(known).flatmap(words), max_size=4).map(
        lambda parts: [word for part in parts for word in part]
    )


@st.composite
def command_lines(draw):
    name, *own = draw(st.sampled_from([small(command) for command in SMALL]))
    line = [*draw(options(main.main)), name, *own, *draw(options(main.main.get_command(None, name)))]
    line += ["dataset", *SMALL_DATA, *draw(options(main.main.get_command(None, "dataset")))]
    name = draw(st.sampled_from(["mvtec"] * 8 + ["folder", "visa", "elpv", "table", "gone"]))
    return [*line, name, *draw(st.sampled_from([["DATA"]] * 8 + [[], ["gone"], ["DATA", "more"]]))]


def test_no_command_line_ends_in_a_traceback(mvtec, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(main, "stop_on_signals", lambda: None)
    shutil.copytree(mvtec / "bolt", tmp_path / "data" / "bolt")
    codes = []

    @settings(max_examples=LINES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(command_lines())
    def check(words):
        monkeypatch.setattr(sys, "argv", ["main.py", *(word.replace("DATA", "data") for word in words)])
        code = main.cli()
        errors = capfd.readouterr().err
        codes.append(code)
        assert code in (0, 1, 2)
        assert [line.startswith("Error: ") for line in errors.splitlines()].count(True) == (code > 0), errors
        for path in tmp_path.iterdir():
            if path.name != "data":
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    check()
    assert {0, 2} <= set(codes) or LINES < 20
