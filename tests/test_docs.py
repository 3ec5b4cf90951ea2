"""The pages for users say what is so: commands run, flags exist, links lead somewhere, snippets work.

Every block of code that is indented holds command lines. Those of main.py are run, on small images and networks, in a
folder that has what they name. A comment above a block, <!-- not run: WHY -->, is for what needs data, machines or
minutes that are not there; its commands are only parsed, by main.py's own chain.
"""

import io
import re
import shlex
import shutil
import subprocess
import sys

import click
import numpy as np
import pages
import pandas as pd
import pytest
import torch
import trees
from conftest import ROOT, SMALL, SMALL_DATA, make_mvtec, small
from PIL import Image

import main
from cli.tables import filled
from datasets import DATASETS
from methods import DETECTORS
from simplenet.recipes import RECIPES

README, DETECTOR_PAGES = ROOT / "README.md", ROOT / "docs" / "detectors"
MAIN = re.compile(r"(?:^|[|;]\s*|--\s+)python main\.py (.*)")
LINKS = {command: small(command) for command in SMALL}
LINKS |= {"net": [*LINKS["net"], "--meta_epochs", "1"], "dataset": ["dataset", *SMALL_DATA]}
LEFT = {  # by a page's commands
    "README.md": [
        "results/project/group/parts/results.csv",
        "results/project/group/parts/report.html",
        "predictions/overlays/**/*.png",
        "at_1.5/predictions.csv",
        "results/project/group/parts/models/0/folder_parts/*.onnx",
    ],
    "docs/models.md": ["predictions/maps/*", "of_a_stream/predictions.csv"],
}


def parse(words):
    """What the chain makes of a command line, which is not run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(main.main, "_result_callback", lambda configs, **_: configs)
        return main.main(words, standalone_mode=False)


def commands():
    """All commands by name; "run" are the options before them."""
    return {"run": main.main, **{name: main.main.get_command(None, name) for name in main.main.list_commands(None)}}


def of_main(command):
    """The words that a command line gives main.py, or None."""
    found = MAIN.search(command)
    return shlex.split(found[1], comments=True) if found else None


def shrunk(words):
    """The same command line with a small backbone of random weights, small networks and small images."""
    links = [[]]
    for word in words:
        if word in LINKS:
            links.append([])
        links[-1].append(word)
    return [word for link in links for word in (exchange(link) if link and link[0] in LINKS else link)]


def exchange(link):
    """A link of the chain with the values of LINKS; no backbone where it has none."""
    values = pairs(LINKS[link[0]][1:])
    if link[0] == "multimodal" and "-b" not in link:
        values = [pair for pair in values if pair[0] not in ("-b", "-le", "--backbone_weights")]
    flags = {flag for flag, _ in values}
    kept, words = [], iter(link[1:])
    for word in words:
        if word in flags:
            next(words)
        else:
            kept.append(word)
    cells = ["cells"] if kept[-1:] == ["elpv"] else []  # not those of the package, which are many
    return [link[0], *(word for pair in values for word in pair), *kept, *cells]


def pairs(words):
    return list(zip(words[::2], words[1::2], strict=True))


@pytest.fixture
def desk(tmp_path, mvtec, model, monkeypatch):
    """A folder to work in, with small things under the names that the pages use."""
    make_mvtec(tmp_path, ["parts", "other"], train=10)
    folders = {"train/good": "ok", "test/crack": "scratched", "ground_truth/crack": "masks/scratched"}
    for old, new in folders.items():
        (tmp_path / "others" / new).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "other" / old).rename(tmp_path / "others" / new)
    white = np.full((48, 48), 255, np.uint8)
    for path in [own for part in ("train", "test") for own in (tmp_path / "parts" / part).rglob("*.png")]:
        trees.save(tmp_path / "parts_masks" / path.relative_to(tmp_path / "parts"), white)
    trees.save(tmp_path / "part.png", white)
    shutil.copytree(mvtec / "nut" / "test", tmp_path / "new")
    Image.fromarray(trees.texture(0)).save(tmp_path / "photo.jpg")
    shutil.copytree(model.parents[2], tmp_path / "RUN_DIR")
    shutil.copytree(model.parents[2], tmp_path / "ANOTHER_RUN_DIR")
    shutil.copytree(model, tmp_path / "MODEL")
    trees.elpv(tmp_path / "cells")
    values = np.random.default_rng(0).normal(size=(40, 3))
    records = pd.DataFrame(values, columns=["age", "height", "weight"])
    records.assign(sick=[0] * 30 + [1] * 10).to_csv(tmp_path / "records.csv", index=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


RUN = [page for page in pages.PAGES if any(not block.not_run and block.commands for block in pages.blocks(page))]


@pytest.mark.parametrize("page", RUN, ids=pages.name)
def test_commands_run(page, desk, monkeypatch):
    for block in pages.blocks(page):
        for command in [] if block.not_run else block.commands:
            words = of_main(command)
            assert words is not None, f"{block.place}: no command of main.py, and not marked as not run: {command}"
            if "|" in command:
                before = command[: command.index("|")]
                done = subprocess.run(["bash", "-c", before], capture_output=True, text=True, check=True)
                monkeypatch.setattr(sys, "stdin", io.StringIO(done.stdout))
            assert main.main(shrunk(words), standalone_mode=False) in (None, 0), f"{block.place}: {command}"
    missing = [path for path in LEFT.get(pages.name(page), []) if not list(desk.glob(path))]
    assert not missing


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name)
def test_commands_that_are_not_run_are_parsed(page):
    for block in pages.blocks(page):
        assert block.language in ("", "text", "python"), (
            f"{block.place}: commands are indented, others say what they are"
        )
        synopses = [line for line in block.lines if block.language == "text" and MAIN.search(line)]
        assert all("[" in line for line in synopses), f"{block.place}: commands are indented"
        for command in block.commands if block.not_run else []:
            words = of_main(command)
            try:
                assert words is None or parse(words), command
            except click.ClickException as error:
                pytest.fail(f"{block.place}: {error.format_message()}")
            for script in re.findall(r"python (\S+\.py)", command):
                assert (ROOT / script).is_file(), f"{block.place}: no {script}"


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name)
def test_commands_of_benchmarks_are_parsed(page, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import accuracy
    import multimodal

    for block in pages.blocks(page):
        for command in block.commands:
            for benchmark in (accuracy, multimodal):
                found = re.match(rf"python benchmarks/{benchmark.__name__}\.py (.*)", command)
                if found:
                    monkeypatch.setattr(sys, "argv", ["", *shlex.split(found[1])])
                    benchmark.parse()  # ends the process where it cannot


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name)
def test_flags_exist(page):
    options = [option for command in commands().values() for option in command.params]
    known = {flag for option in options for flag in option.opts + option.secondary_opts}
    known |= {"--help", "--settings"}  # the second of benchmarks/accuracy.py
    named = set(re.findall(r"(?<![\w-])--?[a-z]\w*", " ".join(re.findall(r"`([^`]+)`", pages.prose(page)))))
    foreign = {"-r", "-m"}  # of pip and python
    assert named <= known | foreign


@pytest.mark.parametrize("page", [*pages.PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=pages.name)
def test_links_lead_somewhere(page):
    for link in pages.links(page):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        assert not anchor or anchor in pages.anchors(target), link


def test_every_page_is_in_the_index():
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / link.partition("#")[0]).resolve() for link in pages.links(index)}
    assert linked == set(pages.PAGES) - {index}


def test_files_that_are_named_exist():
    for page in pages.PAGES:
        for path in re.findall(r"[`\s]((?:datasets|methods|benchmarks|experiment|tests)/\w+\.\w+)", page.read_text()):
            assert (ROOT / path).is_file(), f"{pages.name(page)}: {path}"


def test_readme_is_short():
    lines = README.read_text().splitlines()
    assert len(lines) <= 150
    assert any("folder parts/" in line for line in lines[:60])


def test_every_option_has_its_table():
    """Each command's options stand between two marks, on one page; a detector's on its own, where it has one."""
    opened = []
    for page in pages.PAGES:
        marks = re.findall(r"<!-- (options: [\w ]+|end) -->", page.read_text())
        assert marks[1::2] == ["end"] * (len(marks) // 2) and len(marks) % 2 == 0, pages.name(page)
        opened += [mark.removeprefix("options: ") for mark in marks[::2]]
    wanted = [name for name in commands() if name not in DETECTORS or (DETECTOR_PAGES / f"{name}.md").is_file()]
    wanted += [f"dataset {reader.name}" for reader in DATASETS.values() if reader.options is not None]
    assert sorted(opened) == sorted(wanted)


@pytest.mark.parametrize("page", pages.PAGES, ids=pages.name)
def test_tables_are_those_of_the_command_line(page):
    assert filled(page.read_text()) == page.read_text(), "python -m cli.tables writes them"


@pytest.mark.parametrize("recipe", RECIPES)
def test_tables_of_recipes(recipe):
    """What each sets, those behind the first as they differ from it."""
    text = (ROOT / "docs" / "detectors" / "net.md").read_text()
    section = text.partition(f"## The {recipe} recipe")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`--.+?) \| ([^|]+?) \|", section, re.M)
    shown = {}
    for flags, values in rows:
        names = re.findall(r"`--(\w+)`", flags)
        shown |= dict(zip(names, values.split(", "), strict=True))
    stable = {} if recipe == "stable" else RECIPES["stable"]
    differs = {key: value for key, value in RECIPES[recipe].items() if stable.get(key) != value}
    assert shown == {key: _written(value) for key, value in differs.items()}


def _written(value):
    return "on" if value is True else value if isinstance(value, str) else f"{value:g}"


def test_every_dataset_is_in_the_table():
    text = (ROOT / "docs" / "data.md").read_text()
    rows = re.findall(r"^\| (`.+?) \|", text[: text.index("## Your own images")], re.M)
    assert set(DATASETS) <= {name for row in rows for name in re.findall(r"`(\w+)`", row)}


def snippet(words):
    """The block of Python on the pages that has these words."""
    found = [
        "\n".join(block.lines) for page in pages.PAGES for block in pages.blocks(page) if block.language == "python"
    ]
    (text,) = [text for text in found if words in text]
    return text


def test_every_snippet_is_run():
    """By the two tests below, test_export.py, test_tiles.py and, where OpenVINO is installed, test_runtimes.py."""
    found = [block for page in pages.PAGES for block in pages.blocks(page) if block.language == "python"]
    assert len(found) == 5


def test_python_snippet():
    names: dict[str, object] = {}
    exec(snippet("detector.fit"), names)
    assert names["scores"].shape == (8,)
    assert names["maps"].shape == (8, 160, 160)
    assert (names["maps"].flatten(1).std(dim=1) > 0).all()  # nor NaN


def test_load_snippet(model, mvtec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    block = snippet("from simplenet import load")
    shutil.copytree(model, tmp_path / re.search(r'load\("(.*?)"\)', block).group(1))
    for name in re.findall(r'"(\w+\.png)"', block):
        shutil.copy(next(mvtec.rglob("*.png")), name)
    names: dict[str, object] = {}
    exec(block, names)
    assert names["maps"].shape == (2, 32, 32)
    assert names["anomalous"].dtype == torch.bool
