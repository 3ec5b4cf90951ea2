"""A run that is interrupted, fails, or is asked for again: nothing is lost, and the bytes are those of a whole run."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from commands import ROOT, Command, keep_every_state, wait_for
from conftest import SMALL_DATA, SMALL_NET, make_mvtec

import main
from errors import DataError
from simplenet.training import Trainer

TABLES = ("results.csv", "results_per_seed.csv", "results_best_epoch.csv", "history.csv")
KILLS = int(os.environ.get("KILLS", "2"))  # more by hand: KILLS=20 pytest tests/test_resume.py -k kill
STABLE = [word for word in SMALL_NET if word not in ("--dsc_hidden", "8")] + ["--recipe", "stable"]


def command(mvtec, *net, run=(), data=()):
    return [*run, *SMALL_NET, *net, "dataset", *SMALL_DATA, *data, "mvtec", mvtec]


def folder(tmp_path, name="test"):
    return tmp_path / "results" / "project" / "group" / name


def outputs(run):
    """The bytes of all tables, but of those of times, and predictions."""
    return {
        path.relative_to(run).as_posix(): path.read_bytes()
        for path in sorted(run.rglob("*.csv"))
        if ".partial" not in str(path) and path.name != "cost.csv"
    }


def start(tmp_path, words, before=keep_every_state):
    return Command(words, tmp_path, before=before)


def start_process(tmp_path, words):
    words = [sys.executable, str(ROOT / "main.py"), *map(str, words)]
    return subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def begun(run, process):
    """Wait for a state of training in the folder of a process's run; the path."""
    return wait_for(lambda: list(run.glob("models/*/.*.partial/state.pt")), process)[0]


VARIANTS = {
    "stable": [*STABLE, "--meta_epochs", "6", "dataset", *SMALL_DATA],
    "cosine, backbone trained": [
        *SMALL_NET,
        "--train_backbone",
        "--cos_lr",
        "--meta_epochs",
        "4",
        "dataset",
        *SMALL_DATA,
    ],
    "images at every pass": [
        *["--feature_bank", "off", "--eval_every", "2", "--seed", "3", "--seed", "4"],
        *[*SMALL_NET, "--mix_noise", "2", "--meta_epochs", "3", "dataset", *SMALL_DATA],
        *["--num_workers", "2", "--augment", "--batch_size", "3"],
    ],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_runs_end_with_the_same_bytes(run_main, tmp_path, variant):
    """SIGKILL at random moments of a run of three classes, each time continued: as if it had not been killed.

    Of the last variant states are written now and then, of the others after every meta epoch.
    """
    make_mvtec(tmp_path / "mvtec", ["a", "b", "c"])
    words = [*VARIANTS[variant], "mvtec", tmp_path / "mvtec"]
    run_main("--help")  # what is forked is there before time is taken
    started = time.monotonic()
    whole = run_main("--run_name", "whole", *words)
    seconds = time.monotonic() - started
    assert whole.returncode == 0, whole.stderr
    moments = random.Random(variant)
    run, kills = folder(tmp_path), 0
    before = None if variant == list(VARIANTS)[-1] else keep_every_state
    while kills < KILLS:
        process = start(tmp_path, words, before)
        try:
            process.wait(moments.uniform(0.3, 1) * seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        errors = process.communicate()[1]
        assert process.returncode in (0, -signal.SIGKILL), errors
        if process.returncode == 0:  # all done: the next kill hits a new run, and sooner
            seconds *= 0.8
            assert outputs(run) == outputs(folder(tmp_path, "whole"))
            shutil.rmtree(run)
    done = run_main(*words)
    assert done.returncode == 0, done.stderr
    assert outputs(run) == outputs(folder(tmp_path, "whole"))
    assert len(outputs(run)) == len(TABLES) + 3 * (2 if "--seed" in words else 1)
    assert not list(run.rglob("*.partial"))
    assert not list(run.rglob("state.pt"))


def test_training_goes_on_where_it_stood(run_main, tmp_path, mvtec):
    """A killed job's epochs are not repeated, and TensorBoard and the bar count on."""
    words = command(mvtec, "--meta_epochs", "400", data=["-d", "nut"])
    process = start(tmp_path, words)
    state = begun(folder(tmp_path), process)
    time.sleep(1)
    process.kill()
    process.communicate()
    epochs = torch.load(state, weights_only=True)["training"]["meta_epoch"]
    stamp = state.stat().st_mtime_ns
    process = start(tmp_path, words)
    wait_for(lambda: state.stat().st_mtime_ns != stamp, process)
    again = torch.load(state, weights_only=True)
    process.kill()
    process.communicate()
    assert epochs < again["training"]["meta_epoch"] < epochs + 20
    assert [row["meta_epoch"] for row in again["history"][0]] == list(range(1, again["training"]["meta_epoch"] + 1))


@pytest.mark.parametrize(
    ("start", "number", "code"), [(start_process, signal.SIGINT, 130), (start, signal.SIGTERM, 143)]
)
def test_signals_end_a_run_in_order(tmp_path, mvtec, start, number, code):
    words = command(mvtec, "--meta_epochs", "3000", data=["--num_workers", "2", "--augment"])
    process = start(tmp_path, words)
    state = begun(folder(tmp_path), process)
    process.send_signal(number)
    output, errors = process.communicate()
    assert process.returncode == code, errors
    last = errors.splitlines()[-1]
    assert last == "Error: interrupted; 0 of 2 jobs are finished; the same command continues the run"
    assert "Traceback" not in errors
    assert output == ""
    assert torch.load(state, weights_only=True)["training"]["meta_epoch"] >= 1
    assert [path.name for path in folder(tmp_path).iterdir() if path.is_file()] == ["config.json"]


def test_finished_jobs_are_not_repeated(run_main, tmp_path, mvtec):
    assert run_main(*command(mvtec)).returncode == 0
    run = folder(tmp_path)
    before = outputs(run)
    for name in TABLES:
        (run / name).unlink()
    (run / ".results.csv.partial").write_text("half")
    (run / "models" / "0" / ".mvtec_bolt.partial").mkdir()
    stamps = {path: path.stat().st_mtime_ns for path in run.glob("models/**/*") if path.is_file()}
    done = run_main(*command(mvtec, data=["--num_workers", "1"], run=["--feature_bank", "off"]))
    assert done.returncode == 0, done.stderr
    assert "2 of 2 jobs are finished already" in done.stderr
    assert "mvtec_nut" in done.stdout
    assert outputs(run) == before
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert not list(run.rglob("*.partial"))


def test_another_class_does_not_touch_a_begun_job(run_main, tmp_path, mvtec):
    process = start(tmp_path, command(mvtec, "--meta_epochs", "3000", data=["-d", "nut"]))
    state = begun(folder(tmp_path), process)
    process.kill()
    process.communicate()
    done = run_main(*command(mvtec, "--meta_epochs", "3000", data=["-d", "bolt"]))
    assert done.returncode == 2
    assert 'dataset.subdatasets ["nut"], now ["bolt"]' in done.stderr.splitlines()[-1]
    assert state.exists()


def test_other_options_do_not_touch_a_run(run_main, tmp_path, mvtec):
    words = command(mvtec, data=["-d", "nut"])
    assert run_main(*words).returncode == 0
    run = folder(tmp_path)
    before = outputs(run)
    other = command(mvtec, "--noise_std", "0.1", data=["-d", "nut"])
    done = run_main(*other)
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert "holds a run with other options (net.options.noise_std 0.05, now 0.1): choose another --run_name" in last
    assert outputs(run) == before
    done = run_main("--overwrite", *other)
    assert done.returncode == 0, done.stderr
    assert "The earlier run is now results/project/group/test.old-1" in done.stderr
    assert outputs(folder(tmp_path, "test.old-1")) == before
    assert outputs(run) != before
    assert sorted(path.name for path in run.parent.iterdir()) == ["test", "test.old-1"]
    assert run_main("--overwrite", *words).returncode == 0
    assert outputs(run) == before == outputs(folder(tmp_path, "test.old-1"))
    assert folder(tmp_path, "test.old-2").is_dir()
    done = run_main("--overwrite", "--test", *words)
    assert done.returncode == 2
    assert "--test reads the run that --overwrite would move aside" in done.stderr


def test_a_run_that_left_nothing_may_change_its_options(run_main, tmp_path, mvtec):
    done = run_main(*command(mvtec, "--dsc_lr", "1e30"))
    assert done.returncode == 1
    done = run_main(*command(mvtec))
    assert done.returncode == 0, done.stderr
    assert json.loads((folder(tmp_path) / "config.json").read_text())["net"]["options"]["dsc_lr"] == 0.0002


def test_divergence_names_what_is_kept(tmp_path, mvtec, monkeypatch):
    """The state before it is named and good: the run goes on from there."""

    def words(name):
        return ["--results_path", str(tmp_path), "--run_name", name, *map(str, command(mvtec, "--meta_epochs", "3"))]

    main.main(words("whole"), standalone_mode=False)
    step, count = Trainer.step, 0

    def diverging(self, *arguments):
        nonlocal count
        count += 1
        stats = step(self, *arguments)
        return stats if count != 4 else stats._replace(loss=stats.loss * float("inf"))

    monkeypatch.setattr(Trainer, "step", diverging)
    with pytest.raises(DataError) as caught:
        main.main(words("test"), standalone_mode=False)
    run = tmp_path / "project" / "group" / "test"
    state = run / "models" / "0" / ".mvtec_bolt.partial" / "state.pt"
    assert "the loss is not finite from meta epoch 2, step 2 on; lower the learning rate" in str(caught.value)
    assert str(caught.value).endswith(f"; the state after meta epoch 1 is in '{state}'")
    assert torch.load(state, weights_only=True)["training"]["meta_epoch"] == 1
    main.main(words("test"), standalone_mode=False)
    assert outputs(run) == outputs(tmp_path / "project" / "group" / "whole")


def test_skip_goes_on_without_a_bad_class(run_main, tmp_path):
    """The reason is in results.csv and failed.json, the exit code is 1, and a mended class is caught up on."""
    make_mvtec(tmp_path / "mvtec", ["a", "b", "c", "d"])
    header, late = (tmp_path / "mvtec" / name / "train" / "good" / "001.png" for name in ("b", "c"))
    good = late.read_bytes()
    header.write_bytes(b"no image")
    late.write_bytes(good[:300])  # its header is good
    words = command(tmp_path / "mvtec")
    done = run_main(*words)
    assert done.returncode == 1
    assert "b/train/good/001.png' is not an image" in done.stderr.splitlines()[-1]
    assert not folder(tmp_path).exists()
    done = run_main("--on_error", "skip", *words)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("Error: 2 of 4 jobs failed: the reasons are in '")
    results = pd.read_csv(folder(tmp_path) / "results.csv", index_col="class")
    assert results.index.tolist() == ["mvtec_a", "mvtec_b", "mvtec_c", "mvtec_d", "Mean"]
    assert results["image_auroc"].isna().tolist() == [False, True, True, False, False]
    assert results.loc["Mean", "image_auroc"] == pytest.approx(results["image_auroc"].iloc[:4].mean(), abs=2e-6)
    assert "b/train/good/001.png' is not an image" in results.loc["mvtec_b", "error"]
    assert "c/train/good/001.png' cannot be read" in results.loc["mvtec_c", "error"]
    failed = json.loads((folder(tmp_path) / "failed.json").read_text())
    assert [(one["title"], one["seed"]) for one in failed] == [("mvtec_b", 0), ("mvtec_c", 0)]
    assert [one["error"] for one in failed] == results.loc[["mvtec_b", "mvtec_c"], "error"].tolist()
    assert run_main("report", folder(tmp_path)).returncode == 0
    header.write_bytes(good)
    late.write_bytes(good)
    done = run_main(*words)
    assert done.returncode == 0, done.stderr
    assert "2 of 4 jobs are finished already" in done.stderr
    results = pd.read_csv(folder(tmp_path) / "results.csv", index_col="class")
    assert "error" not in results
    assert results["image_auroc"].notna().all()
    assert not (folder(tmp_path) / "failed.json").exists()


def test_skip_when_every_class_fails(run_main, tmp_path):
    make_mvtec(tmp_path / "mvtec", ["a", "b"])
    for name in ("a", "b"):
        (tmp_path / "mvtec" / name / "train" / "good" / "001.png").write_bytes(b"no image")
    done = run_main("--on_error", "skip", *command(tmp_path / "mvtec"))
    assert done.returncode == 1
    assert "2 of 2 jobs failed" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert pd.read_csv(Path(folder(tmp_path)) / "results.csv")["error"].notna().tolist() == [True, True, False]
