"""run.sh passes on what the README and the other pages say; test_docs.py has the rest of what they show."""

import re
import shlex
import shutil
import subprocess

import pages
import pytest
from conftest import ROOT
from test_docs import parse


@pytest.fixture
def run_sh(tmp_path):
    """What run.sh, with options behind the path, passes to main.py."""
    shutil.copy(ROOT / "run.sh", tmp_path)
    (tmp_path / "setup.sh").write_text(f"here={tmp_path} python=echo\nsetup() {{ :; }}\n")

    def words(*options):
        command = ["bash", str(tmp_path / "run.sh"), "/path/to/mvtec", *options]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[1:]

    return words


def test_papers_command_is_run_shs(run_sh):
    """The README shows the command that run.sh runs."""
    shown = re.search(
        r"    python (main.py --log_project MVTec.*?mvtec /path/to/mvtec)\n", (ROOT / "README.md").read_text(), re.S
    )
    assert [word for word in shown.group(1).split() if word != "\\"][1:] == run_sh()


def test_run_sh_takes_options_and_recipes(run_sh):
    words = run_sh("-d", "bottle", "--gpu", "1", "--meta_epochs", "10", "--batch_size", "4")
    net, dataset = words.index("net"), words.index("dataset")
    assert words[net - 2 : net] == ["--gpu", "1"]
    assert words[dataset - 2 : dataset] == ["--meta_epochs", "10"]
    assert words[-6:] == ["-d", "bottle", "--batch_size", "4", "mvtec", "/path/to/mvtec"]
    for stable in (["--recipe", "stable"], ["--recipe=stable"]):
        words = run_sh(*stable, "--ema", "0.9")
        assert "--noise_std" not in words
        assert "wideresnet50" in words
    assert "--noise_std" in run_sh("--recipe", "paper")


def test_run_sh_makes_command_lines_that_main_takes(run_sh):
    """Of every `bash run.sh /path/to/mvtec ...` on the pages."""
    found = [command for page in pages.PAGES for block in pages.blocks(page) for command in block.commands]
    options = [re.match("bash run.sh /path/to/mvtec(.*)", command) for command in found]
    given = [shlex.split(match[1]) for match in options if match]
    assert len(given) > 3
    for words in given:
        assert parse(run_sh(*words))
