"""What the README shows runs."""

import re

import torch
from conftest import ROOT


def test_python_snippet():
    (snippet,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    names: dict[str, object] = {}
    exec(snippet, names)
    assert names["scores"].shape == (8,)
    assert names["maps"].shape == (8, 160, 160)
    assert torch.isfinite(names["maps"]).all()


def test_papers_command_is_run_shs():
    """The README shows the command that run.sh runs."""
    shown = re.search(r"    python main.py --seed.*?mvtec /path/to/mvtec\n", (ROOT / "README.md").read_text(), re.S)
    script = (ROOT / "run.sh").read_text()
    recipe = script[script.index("exec", script.index("done")) :]
    recipe = re.sub(r"\$\{(run|net|dataset)\[@\].*?\}\"\}", "", recipe)
    words = lambda text: [w for w in text.split() if w != "\\"][2:-1]  # noqa: E731
    assert words(shown.group()) == words(recipe.replace("exec ", "", 1))
