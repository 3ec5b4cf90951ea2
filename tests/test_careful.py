"""Nothing of other runs is touched, nothing half written stops a run, and what a run is of stays the same."""

import json
import os
import shutil
from pathlib import Path

import pytest
import timm
import torch
from conftest import SMALL_DATA, SMALL_NET, make_mvtec
from test_resume import outputs

import files
import main
from errors import DataError, UsageError
from experiment.record.inputs import Inputs
from experiment.record.lock import LOCK, only_writer
from experiment.record.provenance import differences


@pytest.fixture
def run(tmp_path, monkeypatch, mvtec):
    """Run a small chain over one class in this process; the folder of its run."""
    monkeypatch.chdir(tmp_path)

    def go(*options, name="test", net=(), data=mvtec):
        words = ["--run_name", name, *options, *SMALL_NET, *net, "dataset", *SMALL_DATA, "-d", "nut", "mvtec", data]
        main.main([str(word) for word in words], standalone_mode=False)
        return Path("results/project/group") / name

    return go


def begin(run):
    """What a run that was killed in its first job leaves in its folder."""
    state = run / "models/0/.mvtec_nut.partial/state.pt"
    state.parent.mkdir(parents=True)
    state.write_bytes(b"precious")
    (run / "config.json").write_text("{}")
    return state


@pytest.mark.parametrize("flag", ["run_name", "log_group", "log_project"])
@pytest.mark.parametrize("name", ["", ".", "..", "a/../b", "/a", "a//b", "models", "a\0b"])
def test_names_that_are_no_folder_are_refused(run, flag, name):
    with pytest.raises(UsageError, match=f"--{flag} .*expected the name of a folder"):
        run(f"--{flag}", name, **({"name": "test"}))
    assert not Path("results").exists()


def test_a_run_leaves_the_states_of_runs_below_it_alone(run):
    states = [begin(Path("results/project/group/sweep/a")), begin(Path("results/project/group/sweep/a/b"))]
    own = run(name="sweep")
    assert (own / "results.csv").is_file()
    assert [state.read_bytes() for state in states] == [b"precious"] * 2


def test_what_is_half_written_of_a_run_itself_is_removed(run):
    own = run()
    left = [own / ".results.csv.partial", own / "models/0/mvtec_nut/.job.json.partial"]
    for path in left:
        path.write_text("half")
    (own / "models/0/.mvtec_bolt.partial").mkdir()
    run()
    assert not [path for path in own.rglob("*") if "partial" in path.name]


def test_a_grid_is_marked_from_its_start(run, monkeypatch):
    """Killed in its first job, and given again without --grid: its states stay."""
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr("experiment.run.work", lambda *_: (_ for _ in ()).throw(InterruptedError))
        run("--grid", "dsc_hidden=8,6")
    state = Path("results/project/group/test/dsc_hidden=8/models/0/.mvtec_nut.partial/state.pt")
    state.parent.mkdir(parents=True)
    state.write_bytes(b"precious")
    with pytest.raises(UsageError, match="holds the runs of a --grid"):
        run()
    assert state.read_bytes() == b"precious"


def test_overwrite_moves_no_run_that_is_being_written(run):
    below = Path("results/project/group/test/below")
    below.mkdir(parents=True)
    run()
    with only_writer(below), pytest.raises(UsageError, match="below' is being written by process"):
        run("--overwrite")
    (below / LOCK).write_text("process 1 of long ago")
    run("--overwrite")
    assert Path("results/project/group/test.old-1/below").is_dir()


def test_a_forked_process_does_not_hold_its_parents_lock(tmp_path):
    """As those that read images, which outlive a run that is killed."""
    with only_writer(tmp_path):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            locks = [path for path in Path("/proc/self/fd").iterdir() if path.exists() and path.resolve().name == LOCK]
            os.write(writer, str(len(locks)).encode())
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(reader, 9) == b"0"
        with pytest.raises(UsageError, match="is being written"), only_writer(tmp_path):
            pass


@pytest.mark.parametrize("content", [b"", b'{"format": 1}', None])
def test_a_damaged_result_costs_its_job_alone(run, capsys, content):
    own = run("--seed", "0", "--seed", "1")
    before = outputs(own)
    stamp = (own / "models/0/mvtec_nut_seed_1/job.json").stat().st_mtime_ns
    damaged = own / "models/0/mvtec_nut_seed_0/job.json"
    damaged.unlink() if content is None else damaged.write_bytes(content)
    with pytest.raises(DataError, match="the command of the run, given again, does this job anew"):
        run("--seed", "0", "--seed", "1", "--test")
    capsys.readouterr()
    run("--seed", "0", "--seed", "1")
    said = capsys.readouterr().err
    assert "'mvtec_nut_seed_0' is made again, and what is left of it is in" in said
    assert "1 of 2 jobs are finished already" in said
    aside = own / "models/0/mvtec_nut_seed_0.damaged-1"
    assert (aside / "checkpoint.safetensors").is_file()
    shutil.rmtree(aside)
    assert outputs(own) == before
    assert (own / "models/0/mvtec_nut_seed_1/job.json").stat().st_mtime_ns == stamp


def test_a_result_of_another_version_is_not_made_again(run):
    path = run() / "models/0/mvtec_nut/job.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    with pytest.raises(DataError, match="is of another version"):
        run()


def test_files_are_on_the_disk_before_they_have_their_names(tmp_path, monkeypatch):
    """File, then name, then folder; pictures go without."""
    done = []
    sync, replace = os.fsync, os.replace

    def synced(number):
        done.append(Path(f"/proc/self/fd/{number}").readlink().name)
        sync(number)

    monkeypatch.setattr(files.os, "fsync", synced)
    monkeypatch.setattr(files.os, "replace", lambda *names: (done.append("rename"), replace(*names)))
    files.write_text(tmp_path / "job.json", "x")
    assert done == [".job.json.partial", "rename", tmp_path.name]
    done.clear()
    files.write_bytes(tmp_path / "x.png", b"x", flush=False)
    assert done == ["rename"]
    done.clear()
    (tmp_path / "folder").mkdir()
    files.move(tmp_path / "folder", tmp_path / "moved")
    assert done == ["rename", tmp_path.name]


def weights(path, seed):
    torch.manual_seed(seed)
    torch.save(timm.create_model("test_resnet").state_dict(), path)
    return path


def test_the_weights_files_content_decides(run, tmp_path):
    """Another file under the name is another run; the file under another name is the same."""
    own = weights(tmp_path / "w.pth", 0)
    folder = run(net=["--backbone_weights", "w.pth"])
    before = outputs(folder)
    run(net=["--backbone_weights", "./w.pth"])
    moved = own.rename(tmp_path / "moved.pth")
    run(net=["--backbone_weights", moved])
    run("--test", net=["--backbone_weights", moved])
    assert outputs(folder) == before
    weights(own, 1)
    with pytest.raises(UsageError, match=r"other options \(net\.backbone_weights_sha256 "):
        run(net=["--backbone_weights", "w.pth"])


def test_configurations_without_a_digest_are_compared_by_name():
    theirs = {"net": {"backbone_weights": "a.pth"}}
    ours = {"net": {"backbone_weights": "a.pth", "backbone_weights_sha256": "0"}}
    assert differences(theirs, ours) == ([], [])
    ours["net"]["backbone_weights"] = "b.pth"
    assert differences(theirs, ours)[0] == ["net.backbone_weights a.pth, now b.pth"]


def test_an_option_of_data_that_was_not_there_had_its_default():
    theirs = {"dataset": {"batch_size": 2}, "dataset_2": {}}
    ours = {"dataset": {"batch_size": 2, "shots": None, "contamination": 0.0}, "dataset_2": {"shots": None}}
    assert differences(theirs, ours) == ([], [])
    ours["dataset"]["shots"] = 4
    assert differences(theirs, ours)[0] == ["dataset.shots unset, now 4"]


def test_other_images_are_another_run(run, tmp_path):
    data = make_mvtec(tmp_path / "data", ["nut"])
    own = run(data=data)
    before = outputs(own)
    image = data / "nut/train/good/001.png"
    os.utime(image, (0, 0))  # touched, with the same content
    run(data=data)
    assert outputs(own) == before
    content, status = image.read_bytes(), image.stat()
    shutil.copy(data / "nut/train/good/002.png", image)
    with pytest.raises(UsageError, match="mvtec_nut' is of other images than those that are now in"):
        run(data=data)
    image.write_bytes(content)
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    run(data=data)
    assert outputs(own) == before


def test_training_goes_on_with_the_images_that_it_began_with(run, tmp_path, monkeypatch):
    data = make_mvtec(tmp_path / "data", ["nut"])
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr("experiment.train.train.finish", lambda *_, **__: (_ for _ in ()).throw(RuntimeError))
        run(data=data)
    mask = data / "nut/ground_truth/crack/000_mask.png"
    shutil.copy(data / "nut/ground_truth/crack/001_mask.png", mask)
    with pytest.raises(DataError, match=r"\.mvtec_nut\.partial' began with other images than"):
        run(data=data)


def test_files_are_read_once_for_all_jobs_of_a_process(run, tmp_path, monkeypatch):
    data = make_mvtec(tmp_path / "data", ["nut"])
    read, names = Path.read_bytes, []
    monkeypatch.setattr(Path, "read_bytes", lambda path: (names.append(path.name), read(path))[1])
    run("--seed", "5", "--seed", "6", data=data)
    assert names.count("003.png") == 1  # a training image


def test_inputs_know_rows_and_masks(tmp_path):
    from datasets import ClassSamples, Sample

    image, mask = tmp_path / "a.png", tmp_path / "m.png"
    for path in (image, mask):
        path.write_bytes(b"12")
    row = torch.zeros(3).numpy()
    samples = ClassSamples([Sample(tmp_path / "t.csv/row 1", (), False, "t", "good", values=row)], [])
    known = Inputs.of(samples, tmp_path)
    assert Inputs.of(samples, tmp_path) == known
    assert known.are_those_of(samples, tmp_path)
    assert not known.are_those_of(
        ClassSamples([Sample(tmp_path / "t.csv/row 1", (), False, "t", "good", values=row + 1)], []), tmp_path
    )
    with_mask, without = (ClassSamples([], [Sample(image, masks, True, "t", "crack")]) for masks in ((mask,), ()))
    assert not Inputs.of(with_mask, tmp_path).are_those_of(without, tmp_path)
    normal = ClassSamples([], [Sample(image, (), False, "t", "good")])
    assert not Inputs.of(without, tmp_path).are_those_of(normal, tmp_path)
