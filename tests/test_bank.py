"""The feature bank: the same numbers wherever it is kept, read once, and gone afterwards."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, SMALL_DATA, SMALL_NET, make_mvtec

import main
from backbones import FeatureBank, FeatureExtractor, bank
from backbones.features import joined, shape_of
from datasets import Shuffled
from errors import DataError

CPU = torch.device("cpu")


@pytest.mark.parametrize("place", ["device", "host", "disk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gives_back_what_was_stored(place, dtype):
    features = torch.randn(7, 2, 3, 5).to(dtype)
    found = FeatureBank((7, 2, 3, 5), dtype, place, CPU)
    found.fill(features.split(3))
    assert torch.equal(torch.cat(list(found.batches(4))), features)
    order = Shuffled(7, seed=1)
    first, second = (list(found.batches(4, order)) for _ in range(2))
    again = Shuffled(7, seed=1)
    assert torch.equal(torch.cat(first), features[list(again)])
    assert torch.equal(torch.cat(second), features[list(again)])
    assert [len(batch) for batch in first] == [4, 3]


@pytest.mark.parametrize("place", ["host", "disk"])
def test_several_tensors_of_an_image_stay_together(place):
    features = torch.randn(7, 2, 3), torch.randn(7, 5)
    found = FeatureBank(shape_of(7, tuple(own[:1] for own in features)), torch.float32, place, CPU)
    found.fill(zip(*(own.split(3) for own in features), strict=True))
    order = Shuffled(7, seed=1)  # another at every iteration
    for given, expected in ((None, list(range(7))), (order, list(Shuffled(7, seed=1)))):
        batches = list(found.batches(4, given))
        assert [len(batch) for batch in batches] == [2, 2]
        for own, stored in zip(joined(batches), features, strict=True):
            assert torch.equal(own, stored[expected])
    assert len(found) == 7 and found.nbytes == bank.bank_bytes([(7, 2, 3), (7, 5)], torch.float32) == 7 * 11 * 4


def test_a_wrong_count_is_an_error():
    with pytest.raises(ValueError, match="3 embeddings were given, not 4"):
        FeatureBank((4, 1, 1, 2), torch.float32, "host", CPU).fill([torch.zeros(3, 1, 1, 2)])


def test_auto_takes_the_first_place_with_room(monkeypatch):
    monkeypatch.setattr(bank, "free_memory", lambda: 1000)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (300, 900))
    gpu = torch.device("cuda", 0)
    assert [bank.choose_place(size, gpu) for size in (150, 151, 500, 501)] == ["device", "host", "host", "disk"]
    assert [bank.choose_place(size, CPU) for size in (150, 501)] == ["host", "disk"]
    assert bank.bank_bytes((2, 3, 4, 5), torch.bfloat16) == 240


def test_a_full_disk_is_one_clear_error(monkeypatch, tmp_path):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(bank.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(DataError, match=r"no room for a temporary file of 0\.0 GiB .*set TMPDIR"):
        FeatureBank((4, 1, 1, 2), torch.float32, "disk", CPU)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_leaves_no_bank(mvtec, tmp_path):
    """SIGKILL in the middle of training from a disk bank: the temporary folder is empty."""
    (tmp_path / "scratch").mkdir()
    words = [
        "--feature_bank",
        "disk",
        *SMALL_NET,
        "--gan_epochs",
        "100000",
        "dataset",
        *SMALL_DATA,
        "mvtec",
        str(mvtec),
    ]
    env = {**os.environ, "TMPDIR": str(tmp_path / "scratch")}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), *words], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if "feature bank" in line and "(disk)" in line:
            break
    else:
        pytest.fail("no line names the bank")
    mapped = [line for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines() if "scratch" in line]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert mapped
    assert list((tmp_path / "scratch").iterdir()) == []


MEMORY = """
import sys, torch
sys.path.insert(0, {root!r})
from backbones import FeatureBank
from datasets import Shuffled
shape = (200, 32, 32, 512)  # 400 MiB
bank = FeatureBank(shape, torch.float32, "disk", torch.device("cpu"))
anonymous = lambda: next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssAnon")) / 1024
before = anonymous()
bank.fill(torch.full((8, *shape[1:]), float(i)) for i in range(25))
total = sum(batch.sum().item() for batch in bank.batches(8, Shuffled(200, 0)))
assert total == sum(range(25)) * 8 * 32 * 32 * 512, total
print(anonymous() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's accounting")
def test_a_disk_bank_stays_out_of_memory():
    done = subprocess.run([sys.executable, "-c", MEMORY.format(root=str(ROOT))], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 150  # MiB, of 400 in the bank


@pytest.fixture
def run(tmp_path, mvtec):
    def go(name, *run_options, net=(), data=()):
        words = ["--results_path", str(tmp_path), "--run_name", name, *run_options, *SMALL_NET, *net]
        main.main([*words, "dataset", *SMALL_DATA, "-d", "bolt", *data, "mvtec", str(mvtec)], standalone_mode=False)
        folder = tmp_path / "project" / "group" / name
        return pd.read_csv(folder / "history.csv"), pd.read_csv(
            folder / "models" / "0" / "mvtec_bolt" / "predictions.csv"
        )

    return go


def test_every_place_trains_the_same_model(run):
    """In float32, where a bank rounds nothing: off, host and disk differ by what batching rounds."""
    runs = {
        place: run(place, "--precision", "fp32", "--feature_bank", place, net=["--meta_epochs", "3"])
        for place in ("off", "host", "disk", "auto", "device")
    }
    for place, (history, predictions) in runs.items():
        np.testing.assert_allclose(predictions["score"], runs["off"][1]["score"], rtol=1e-3, err_msg=place)
        np.testing.assert_allclose(history["loss"], runs["off"][0]["loss"], rtol=1e-4, err_msg=place)
    assert runs["host"][1].equals(runs["disk"][1])


@pytest.fixture
def embedded(monkeypatch):
    """How many images each call of the backbone got; but for single ones, by which costs are measured."""
    calls, forward = [], FeatureExtractor.forward

    def counted(self, images, layers):
        if len(images) > 1:
            calls.append(len(images))
        return forward(self, images, layers)

    monkeypatch.setattr(FeatureExtractor, "forward", counted)
    return calls


def test_each_image_is_embedded_once(run, embedded):
    run("bank", net=["--meta_epochs", "3", "--gan_epochs", "2"])
    assert sum(embedded) == 4 + 4  # training and test images
    embedded.clear()
    run("off", "--feature_bank", "off", net=["--meta_epochs", "3", "--gan_epochs", "2"])
    assert sum(embedded) == 6 * 4 + 3 * 4 + 4 + 4  # at the end all for the thresholds, and four for their pictures


def test_jobs_with_the_same_features_share_a_bank(tmp_path, mvtec, embedded):
    """Three backbones of two kinds: their weights come from a file, so the seed changes the training alone."""
    import timm

    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "own.pth")
    net = "net -b resnet18 -b resnet18.seed-4 -b resnet18 -le 0.layer1 -le 1.layer1 -le 2.layer2".split()
    dims = f"--backbone_weights {tmp_path}/own.pth --pretrain_embed_dimension 8 --target_embed_dimension 8".split()
    words = ["--results_path", str(tmp_path), *net, *dims, "dataset", *SMALL_DATA, "-d", "bolt", "mvtec", str(mvtec)]
    main.main(words, standalone_mode=False)
    assert sum(embedded) == 2 * (4 + 4)
    rows = pd.read_csv(tmp_path / "project" / "group" / "test" / "results.csv")["class"].tolist()
    labels = ["resnet18 layer1", "resnet18.seed-4", "resnet18 layer2"]  # a name that occurs twice shows its layers
    assert rows == [*(f"mvtec_bolt ({label})" for label in labels), "Mean"]


def test_random_transforms_and_trained_backbones_stream(run, embedded):
    run("augmented", net=["--gan_epochs", "3"], data=["--hflip", "0.5"])
    assert sum(embedded) == 3 * 4 + 4 + 4  # training images in every pass and for the thresholds, test images once
    embedded.clear()
    run("drawn once", net=["--gan_epochs", "3"], data=["--hflip", "0.5", "--draw_once"])
    assert sum(embedded) == 4 + 4
    embedded.clear()
    run("trained", net=["--gan_epochs", "3", "--train_backbone"])
    assert sum(embedded) == 3 * 4 + 4 + 4 + 4  # at the end all for the thresholds, and four for their pictures


def test_eval_every(run):
    history, _ = run("sparse", "--eval_every", "3", net=["--meta_epochs", "7"])
    assert history["image_auroc"].notna().tolist() == [False, False, True, False, False, True, True]
    assert history["loss"].notna().all()
    every, _ = run("every", net=["--meta_epochs", "7"])
    pd.testing.assert_frame_equal(every.iloc[[2, 5, 6]], history.iloc[[2, 5, 6]])


def test_precision(run):
    (_, exact), (_, rounded) = (run(name, "--precision", name) for name in ("fp32", "bf16"))
    assert not exact["score"].equals(rounded["score"])
    np.testing.assert_allclose(rounded["score"], exact["score"], atol=0.05)


def test_a_broken_image_stops_the_reading(tmp_path):
    make_mvtec(tmp_path / "mvtec", ["bolt"])
    image = tmp_path / "mvtec" / "bolt" / "test" / "good" / "001.png"
    image.write_bytes(image.read_bytes()[:200])
    words = ["--results_path", str(tmp_path), *SMALL_NET, "dataset", *SMALL_DATA, "mvtec", str(tmp_path / "mvtec")]
    with pytest.raises(DataError, match=r"001\.png' cannot be read"):
        main.main(words, standalone_mode=False)
