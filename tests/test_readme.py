"""What the README shows runs."""

import re
import shutil
import subprocess

import pytest
import torch
from conftest import ROOT, SMALL_DATA, SMALL_NET

import main


def snippet(words):
    """The README's Python block that has these words."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (block,) = [text for text in blocks if words in text]
    return block


def test_python_snippet():
    names: dict[str, object] = {}
    exec(snippet("detector.fit"), names)
    assert names["scores"].shape == (8,)
    assert names["maps"].shape == (8, 160, 160)
    assert (names["maps"].flatten(1).std(dim=1) > 0).all()  # nor NaN


def test_load_snippet(mvtec, tmp_path, monkeypatch):
    words = ["--results_path", str(tmp_path), *SMALL_NET, "dataset", *SMALL_DATA, "-d", "bolt", "mvtec", str(mvtec)]
    main.main(words, standalone_mode=False)
    monkeypatch.chdir(tmp_path)
    block = snippet("from simplenet import load")
    model = tmp_path / re.search(r'load\("(.*?)"\)', block).group(1)
    shutil.copytree(tmp_path / "project" / "group" / "test" / "models" / "0" / "mvtec_bolt", model)
    for name in re.findall(r'"(\w+\.png)"', block):
        shutil.copy(next(mvtec.rglob("*.png")), name)
    names: dict[str, object] = {}
    exec(block, names)
    assert names["maps"].shape == (2, 32, 32)
    assert names["anomalous"].dtype == torch.bool


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
