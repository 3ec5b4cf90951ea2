"""run.sh passes on what the README and the other pages say; test_docs.py has the rest of what they show."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pages
import pytest
from conftest import ROOT
from test_docs import parse

import main
from cli.everything import ELPV, MVTEC
from cli.script import run_all, words, words_of_all
from errors import UsageError
from simplenet.recipes import RECIPES


def run_sh(*options):
    """What run.sh, with options behind the path, passes to main.py."""
    return words("/path/to/mvtec", options)


@pytest.mark.parametrize("given", [["/path/to/mvtec"], ["/a b", "--grid", "dsc_hidden=1,2"], ["--help"], ["all"]])
def test_run_sh_asks_python(tmp_path, given):
    shutil.copy(ROOT / "run.sh", tmp_path)
    (tmp_path / "setup.sh").write_text(f"here={tmp_path} python=shown\nsetup() {{ :; }}\n")
    (tmp_path / "shown").write_text('#!/bin/sh\nprintf \'%s\\n\' "$PYTHONPATH" "$@"\n')
    (tmp_path / "shown").chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", str(tmp_path / "run.sh"), *given], capture_output=True, text=True, env=env)
    assert done.stdout.splitlines() == [str(tmp_path), "-m", "cli.script", *given], done.stderr


def test_cli_script_becomes_main(tmp_path):
    """As a process: its help, and main.py's answer to what it was given."""
    command = [sys.executable, "-m", "cli.script"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    said = subprocess.run([*command, "--help"], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert said.returncode == 0 and said.stdout.startswith("bash run.sh /path/to/mvtec [options]")
    done = subprocess.run([*command, "gone", "-d", "x"], capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 2 and done.stderr.endswith("Error: DATA_PATH 'gone' is not a folder\n")


def test_papers_command_is_run_shs():
    """The README shows the command that run.sh runs."""
    shown = re.search(
        r"    python (main.py --log_project MVTec.*?mvtec /path/to/mvtec)\n", (ROOT / "README.md").read_text(), re.S
    )
    assert [word for word in shown.group(1).split() if word != "\\"][1:] == run_sh()


def test_options_go_to_the_command_that_has_them():
    line = run_sh("-d", "bottle", "--gpu=1", "--meta_epochs", "10", "--batch_size", "4", "--bit_depth=12", "--ray")
    net, dataset = line.index("net"), line.index("dataset")
    assert line[net - 2 : net] == ["--gpu=1", "--ray"]
    assert line[dataset - 2 : dataset] == ["--meta_epochs", "10"]
    assert line[-7:] == ["-d", "bottle", "--batch_size", "4", "--bit_depth=12", "mvtec", "/path/to/mvtec"]


def test_every_flag_is_its_commands():
    owners = {"": main.main, **{name: main.main.get_command(None, name) for name in ("net", "dataset")}}
    owner_of = {flag: name for name, own in owners.items() for option in own.params for flag in option.opts}
    given = {flag: owner for flag, owner in owner_of.items() if flag.startswith("-")}
    line = run_sh(*given)
    places = {"": 0, "net": line.index("net"), "dataset": line.index("dataset")}
    ends = {"": places["net"], "net": places["dataset"], "dataset": len(line)}
    assert len(given) > 70
    for flag, owner in given.items():
        assert places[owner] <= line.index(flag) < ends[owner], flag


def test_options_take_the_place_of_the_papers():
    """Of those that may be given several times too, and negative numbers are no flags."""
    line = run_sh("-b", "resnet18", "--meta_epochs=10", "--noise_std", "-1")
    assert line.count("-b") == 1 and "wideresnet50" not in line and line.count("-le") == 2
    assert "--meta_epochs" not in line and line[line.index("--noise_std") + 1] == "-1"
    assert "layer3" not in run_sh("--layers_to_extract_from", "layer1")


def test_an_unknown_option_is_nets_to_refuse():
    line = run_sh("--bachsize", "4")
    assert line[line.index("dataset") - 2 : line.index("dataset")] == ["--bachsize", "4"]


@pytest.mark.parametrize("recipe", [["--recipe", "stable"], ["--recipe=stable"], ["--recipe", "memory"]])
def test_a_recipe_sets_its_own_options(recipe):
    line, name = run_sh(*recipe, "--ema", "0.9"), recipe[-1].removeprefix("--recipe=")
    assert not {f"--{own}" for own in RECIPES[name] if own != "ema"} & set(line)
    assert ("--target_embed_dimension" in line) == (name == "stable")  # memory has fewer than the paper
    assert "wideresnet50" in line and "--noise_std" in run_sh("--recipe", "paper")


@pytest.mark.parametrize(("path", "table"), [("/path/to/mvtec", MVTEC), (None, ELPV)])
def test_run_sh_all_has_every_detector_once(path, table):
    """With options for all, in command lines that main.py takes; those that read the same data share one."""
    given = ["-d", "one", "--gpu", "0", "--num_workers=0", "--seed", "3"]
    lines = [parse(line) for line in words_of_all(path, given)]
    configs = [config for line in lines for config, *_ in line]
    commands = [one.command for one in configs if hasattr(one, "command")]
    assert sorted(commands) == sorted(own.partition("_")[0] for own in table)  # net_memory is a second net
    assert "--recipe memory --as net_memory" in " ".join(words_of_all(path, given)[0])
    data = [one for one in configs if not hasattr(one, "command")]
    assert all((one.subdatasets, one.num_workers) == (("one",), 0) for one in data)
    assert len(lines) == (1 if path is None else 2)
    assert all("--seed" in line and line[-1] == (path or "elpv") for line in words_of_all(path, given))
    with pytest.raises(UsageError, match=r"'--blocks' is no option of main\.py or dataset"):
        words_of_all(path, ["--blocks", "2"])


def test_run_sh_all_ends_with_what_went_wrong(monkeypatch):
    codes, called = iter([1, 0, 0, 130]), []

    def call(words):
        called.append(words[-1])
        return subprocess.CompletedProcess(words, next(codes))

    monkeypatch.setattr("cli.script.subprocess.run", call)
    assert run_all(["/data"]) == 1 and run_all(["/data", "--seed", "1"]) == 130
    assert called == ["/data"] * 4


def test_run_sh_makes_command_lines_that_main_takes():
    """Of every `bash run.sh /path/to/mvtec ...` on the pages."""
    found = [command for page in pages.PAGES for block in pages.blocks(page) for command in block.commands]
    options = [re.match("bash run.sh /path/to/mvtec(.*)", command) for command in found]
    given = [shlex.split(match[1]) for match in options if match]
    assert len(given) > 3
    for own in given:
        assert parse(run_sh(*own))
