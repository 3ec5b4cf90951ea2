"""Several detectors on one command line: each with the bytes that it has alone, of images read once for all."""

import json
import re
from collections import Counter
from itertools import chain as joined
from pathlib import Path

import pandas as pd
import pytest
import torch
from commands import Command, keep_every_state, stop_at_the_first_state, wait_for
from conftest import SMALL_DATA, SMALL_NET, small

import datasets.images
import main
from errors import DataError, UsageError
from experiment.plan.notes import NOTE
from experiment.plan.task import group
from experiment.scale import parallel, worker
from experiment.show.ablation import read_runs

FAMILY = Path("results/project/group/test")
THREE = {"net": SMALL_NET, "patchcore": small("patchcore"), "rd": small("rd")}
DATA = ["dataset", *SMALL_DATA, "--resize_mode", "square"]  # rd's own


def call(*words):
    main.main([str(word) for word in words], standalone_mode=False)


def words_of(*detectors):
    return [word for name in detectors for word in THREE[name]]


def contents(folder):
    """All files of finished runs but TensorBoard's and those on costs, which hold times."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix)
    timeless = (path for path in files if "tfevents" not in path.name and path.stem != "cost")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in timeless}


@pytest.fixture(scope="module")
def whole(mvtec, tmp_path_factory):
    """The folder that a command line of three detectors was run in, and how often each image was read on it."""
    where, reads = tmp_path_factory.mktemp("whole"), Counter()

    def count(path, *given, read=datasets.images.read_image):
        reads[path] += 1
        return read(path, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(where)
        patch.setattr(datasets.images, "read_image", count)
        call("--precision", "fp32", *words_of(*THREE), *DATA, "mvtec", mvtec)
    return where, reads


def test_each_has_the_bytes_that_it_has_alone(whole, mvtec, tmp_path, monkeypatch):
    """In the folder that it would be given by --run_name, config.json included."""
    monkeypatch.chdir(tmp_path)
    for name, words in THREE.items():
        call("--precision", "fp32", "--run_name", f"test/{name}", *words, *DATA, "mvtec", mvtec)
        alone, own = contents(FAMILY / name), contents(whole[0] / FAMILY / name)
        assert own.keys() == alone.keys() and len(own) > 10
        assert [file for file in own if own[file] != alone[file]] == [], name


def test_images_are_read_once(whole, mvtec):
    train = [path for path in mvtec.rglob("*.png") if "train" in path.parts]
    assert len(train) == 8 and all(whole[1][path] == 1 for path in train)


def test_classes_are_embedded_once_for_the_same_features(whole, mvtec, tmp_path, monkeypatch, embedded, capsys):
    """A detector that is added is all that runs, and stands beside those that the command line leaves out."""
    monkeypatch.chdir(tmp_path)
    data = [*DATA, "-d", "nut", "mvtec", mvtec]
    call(*words_of("net", "patchcore"), *data)
    assert embedded == ["mvtec_nut"]
    first = contents(FAMILY)
    call(*words_of("net", "patchcore", "rd"), *data)
    assert embedded == ["mvtec_nut"] * 2
    assert "2 of 3 jobs are finished already" in capsys.readouterr().err
    again = contents(FAMILY)
    assert {file for file in first if again[file] != first[file]} == {"comparison.csv", "detectors.json"}
    call("net", "--as", "few", *SMALL_NET[1:], "--dsc_hidden", "6", *data)
    printed = capsys.readouterr().out
    call("report", FAMILY)
    shown = capsys.readouterr().out
    for text in (printed, shown):
        assert re.findall(r"^mvtec_nut +(\w+) ", text, re.M)[:4] == ["net", "patchcore", "rd", "few"]
    assert printed.strip() in shown
    rows = pd.read_csv(FAMILY / "comparison.csv")
    assert list(rows.columns[:4]) == ["run", "detector", "class", "image_auroc"]
    assert rows["detector"].tolist() == [name for name in ("net", "patchcore", "rd", "few") for _ in range(2)]
    own = pd.read_csv(FAMILY / "rd" / "results.csv")
    pd.testing.assert_frame_equal(rows[rows["run"] == "rd"][own.columns].reset_index(drop=True), own)


def test_the_same_detector_twice_and_a_grid_of_what_one_has(mvtec, tmp_path, monkeypatch, embedded):
    """An option of both varies both; a grid of one is in its folder what it would be alone."""
    monkeypatch.chdir(tmp_path)
    data = ["dataset", *SMALL_DATA, "-d", "nut", "mvtec", mvtec]
    two = [*THREE["patchcore"], "--as", "a", *THREE["patchcore"], "--as", "b"]
    grids = ["--grid", "dsc_hidden=8,6", "--grid", "reweight=2,3"]
    call(*grids, *SMALL_NET, *two, *data)
    folders = [f"net/dsc_hidden={n}" for n in (8, 6)] + [f"{name}/reweight={n}" for name in "ab" for n in (2, 3)]
    assert embedded == ["mvtec_nut"] and json.loads((FAMILY / "detectors.json").read_text()) == ["net", "a", "b"]
    rows = pd.read_csv(FAMILY / "comparison.csv")
    assert list(rows.columns[:5]) == ["run", "detector", "dsc_hidden", "reweight", "class"]
    assert list(dict.fromkeys(rows["run"])) == folders
    assert [(run.called, run.grid) for run in read_runs(FAMILY)][2:4] == [("a", {"reweight": n}) for n in "23"]
    call("--run_name", "alone", *grids[2:], *THREE["patchcore"], *data)
    for name in ("ablation.csv", "grid.json", "reweight=3/models/0/mvtec_nut/job.json"):
        alone = FAMILY.with_name("alone") / name
        assert (FAMILY / "a" / name).read_bytes() == (FAMILY / "b" / name).read_bytes() == alone.read_bytes()


def test_killed_in_the_midst_of_each_it_ends_with_the_same_bytes(whole, mvtec, tmp_path, run_main):
    """SIGKILL once a state of training is written, of one detector after another."""
    words = ["--precision", "fp32", *words_of(*THREE), *DATA, "mvtec", mvtec]
    for name in THREE:
        process = Command(words, tmp_path, before=stop_at_the_first_state)
        state = tmp_path / FAMILY / name / "models" / "0" / ".mvtec_bolt.partial" / "state.pt"
        wait_for(state.exists, process)
        process.kill()
        process.wait()
    done = Command(words, tmp_path, before=keep_every_state)
    assert (done.communicate(), done.returncode)[1] == 0
    assert contents(tmp_path / FAMILY) == contents(whole[0] / FAMILY)


def test_a_worker_does_them_in_order(whole, mvtec, caught_tasks, display):
    """Tasks of the same images, of several backbones' maps, with the bytes of this process."""
    tasks = caught_tasks(["--precision", "fp32", *words_of(*THREE), *DATA, "mvtec", str(mvtec)])
    same = list(joined.from_iterable(group(tasks)[0]))
    assert [task.title for task in same] == [f"{name} mvtec_bolt seed 0" for name in THREE]
    settings = worker.Settings("fp32", 1, torch.cuda.is_available(), "nobody", "here")
    for task, answer in zip(same, worker.do([parallel._sent(one) for one in same], settings, display), strict=True):
        parallel._unpack(task, answer)
        folder = task.jobs[0].folder
        for name in ("predictions.csv", "checkpoint.safetensors"):
            assert (folder / name).read_bytes() == (whole[0] / folder / name).read_bytes()


def test_each_reads_the_data_as_it_would_alone(mvtec, caught_tasks, capsys):
    """Each has its own defaults; what is given stands for all, and in what they differ is said."""
    data = ["dataset", *SMALL_DATA, "-d", "nut", "mvtec", str(mvtec)]
    tasks = caught_tasks([*words_of("net", "rd"), *small("gaussian"), *data])
    read = {task.called: task.jobs[0].data for task in tasks}
    said = next(line for line in capsys.readouterr().err.splitlines() if line.startswith(NOTE))
    assert "--train_val_split 1.0 (net and rd), 0.9 (gaussian); --batch_size 2 (net and gaussian), 16 (rd)" in said
    assert "--resize_mode aspect (net and gaussian), square (rd): " in said and "imagesize" not in said
    for name, own in read.items():
        (alone,) = caught_tasks(["--run_name", name, *small(name), *data])
        assert own == alone.jobs[0].data
    capsys.readouterr()
    caught_tasks(["--run_name", "same", *words_of("net", "patchcore"), *data])
    assert NOTE not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*SMALL_NET, *SMALL_NET], "two detectors are called 'net': give one another name, such as --as net_2"),
        ([*SMALL_NET, *small("rd"), "--as", "Net"], "two detectors are called 'net'"),
        ([*SMALL_NET, "--as", "a/b"], "--as 'a/b': expected the name of a folder"),
        ([*SMALL_NET, "--as", "models"], "--as 'models': expected the name of a folder"),
        ([*SMALL_NET, "--as", "results.csv"], "--as 'results.csv': expected the name of a folder"),
        ([*SMALL_NET, *small("rd"), "-le", "nowhere"], "rd: .*nowhere"),
        (["rd", *SMALL_NET], "rd: a detector needs a backbone"),
        ([*SMALL_NET, "--aed_meta_epochs", "2", *small("rd")], "--aed_meta_epochs has no effect without --cos_lr"),
        (["--grid", "as=a,b", *SMALL_NET], "'as' is no option of the commands given"),
        (["--grid", "blocks=1,2", *SMALL_NET, *small("patchcore")], "'blocks' is no option of the commands given"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(mvtec, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((UsageError, main.click.ClickException), match=message):
        call(*words, *DATA, "mvtec", mvtec)
    assert not (tmp_path / "results").exists()


def test_folders_of_another_kind_are_left_alone(whole, mvtec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = [*DATA, "-d", "nut", "mvtec", mvtec]
    call(*SMALL_NET, *data)
    with pytest.raises(UsageError, match="test' holds a run without --grid or further detectors"):
        call(*words_of("net", "rd"), *data)
    monkeypatch.chdir(whole[0])
    before = contents(FAMILY)
    with pytest.raises(UsageError, match="test' holds the runs of several detectors"):
        call("--precision", "fp32", *SMALL_NET, *data)
    with pytest.raises(UsageError, match="net' holds a run without --grid"):
        call("--grid", "dsc_hidden=8,6", *words_of("net", "rd"), *data)
    assert contents(FAMILY) == before


@pytest.mark.parametrize("name", ["../elsewhere", "/elsewhere", "a/b/c", "."])
def test_a_strangers_table_leads_nowhere(tmp_path, name):
    (tmp_path / "comparison.csv").write_text(f"run,detector,class\n{name},net,nut\n")
    with pytest.raises(DataError, match="no folder's name"):
        read_runs(tmp_path)
