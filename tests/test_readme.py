"""What the README shows runs."""

import re
import shutil

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
    assert torch.isfinite(names["maps"]).all()


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


def test_papers_command_is_run_shs():
    """The README shows the command that run.sh runs."""
    shown = re.search(
        r"    python main.py --log_project MVTec.*?mvtec /path/to/mvtec\n", (ROOT / "README.md").read_text(), re.S
    )
    script = (ROOT / "run.sh").read_text()
    recipe = script[script.index("exec", script.index("done")) :]
    recipe = re.sub(r"\$\{(run|net|dataset)\[@\].*?\}\"\}", "", recipe)
    words = lambda text: [w for w in text.split() if w != "\\"][2:-1]  # noqa: E731
    assert words(shown.group()) == words(recipe.replace("exec ", "", 1))
