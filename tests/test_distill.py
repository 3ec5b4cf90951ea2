"""A teacher distilled from a backbone: its equations, the images of its steps, and a killed one that goes on."""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import Command, wait_for
from conftest import RESNET
from PIL import Image
from safetensors.torch import load_file

import backbones
import main
from backbones import embed_patches
from errors import DataError, UsageError
from experiment.distill_config import DistillConfig
from experiment.train import distill
from methods import distillation
from methods.pdn import read_teacher

WORDS = ["distill", *RESNET.split(), "--width", "0.02", "--batch_size", "2", "--images", "photos"]


def small() -> None:
    """The patch description network sees 32 pixels."""
    distillation.SIDE = distill.SIDE = 32


def stop_at_the_first_state() -> None:
    small()
    write = distill._write_state

    def write_and_stop(*given: object) -> None:
        write(*given)
        os.kill(os.getpid(), signal.SIGSTOP)

    distill.STATE_SECONDS, distill._write_state = 0, write_and_stop


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Some, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for module in (distillation, distill):
        monkeypatch.setattr(module, "SIDE", 32)
    rng = np.random.default_rng(0)
    for i in range(5):
        path = Path("photos") / "below" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(path)
    return path.parent.parent


def call(*words):
    return main.main([str(word) for word in words], standalone_mode=False)


@pytest.mark.usefixtures("photos")
def test_the_loss_equals_the_equations():
    """Features of twice the side, standardised, against what the network says of the images."""
    source = backbones.load("resnet18", "random")
    own = distillation.Distillation(source, ["layer2", "layer3"], "s", 0.02, torch.float32, 0)
    batches = torch.randn(3, 2, 3, 64, 64).unbind()
    own.learn_scale(batches)
    with torch.no_grad():
        maps = [source(batch, ["layer2", "layer3"]) for batch in batches]
        features = torch.stack([embed_patches(one, 1024, 8).transpose(1, 2).unflatten(2, (8, 8)) for one in maps])
        mean, std = features.mean((0, 1, 3, 4)), features.std((0, 1, 3, 4), correction=0)
        torch.testing.assert_close(own.mean, mean)
        torch.testing.assert_close(own.deviation, std, rtol=1e-4, atol=1e-5)
        little = torch.randn(2, 3, 32, 32)
        expected = ((features[0] - mean[:, None, None]) / std[:, None, None] - own.teacher(little)).square().mean()
        assert own.loss(batches[0], little).item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.usefixtures("photos")
def test_every_pass_sees_all_images_in_another_order():
    config = DistillConfig(None, images=(Path("photos"),), batch_size=2, num_workers=1)
    pictures = distill._Pictures(distill._paths(config.images), config, torch.device("cpu"))
    seen = [float(own.mean()) for _, small in pictures.batches(0, 5) for own in small]
    whole = [float(distill.normalised(pictures._read(n)[1].unsqueeze(0)).mean()) for n in range(10)]
    assert seen == pytest.approx(whole, rel=1e-4)
    first, second = ([distill._order(0, turn, 5)[i] for i in range(5)] for turn in (0, 1))
    assert sorted(first) == sorted(second) == list(range(5)) and first != second
    again = [float(own.mean()) for _, small in pictures.batches(3, 5) for own in small]
    assert again == seen[6:]


@pytest.mark.usefixtures("photos")
def test_crops_and_colours():
    """Squares of at least a quarter of the shorter side; one of ten images loses its colours."""
    config = DistillConfig(None, images=(Path("photos"),), crops=True)
    pictures = distill._Pictures(distill._paths(config.images), config, torch.device("cpu"))
    drawn = [pictures._read(n) for n in range(60)]
    assert {(large.shape, small.shape) for large, small in drawn} == {((3, 64, 64), (3, 32, 32))}
    assert 1 <= sum(bool((large[0] == large[1]).all()) for large, _ in drawn) <= 15
    sizes = {distill._square(Image.new("RGB", (60, 40)), np.random.default_rng(seed)).size for seed in range(99)}
    assert all(width == height for width, height in sizes)
    assert 10 <= min(sizes)[0] < 13 and 37 < max(sizes)[0] <= 40


@pytest.mark.usefixtures("photos")
def test_a_killed_distillation_goes_on_to_the_same_teacher(tmp_path):
    """And what it writes is a teacher for efficientad, in either form."""
    call(*WORDS, "--steps", "3", "--out", "whole.pth")
    process = Command([*WORDS, "--steps", "3", "--out", "killed.pth"], tmp_path, before=stop_at_the_first_state)
    state = tmp_path / ".killed.pth.state"
    wait_for(state.is_file, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not Path("killed.pth").exists() and torch.load(state, weights_only=True)["done"] == 1
    with pytest.raises(DataError, match=r"\.state' is of a distillation with other options or images"):
        call(*WORDS, "--seed", "1", "--out", "killed.pth")
    call(*WORDS, "--steps", "3", "--out", "killed.pth")
    assert not state.exists()
    whole, killed = (read_teacher(Path(name), "s", 0.02) for name in ("whole.pth", "killed.pth"))
    assert all(torch.equal(own, killed[name]) for name, own in whole.items())
    call(*WORDS, "--steps", "3", "--out", "other.safetensors")
    assert all(torch.equal(own, load_file("other.safetensors")[name]) for name, own in whole.items())
    with pytest.raises(UsageError, match=r"--out whole\.pth is there already: give another one"):
        call(*WORDS, "--out", "whole.pth")


@pytest.mark.usefixtures("photos")
def test_it_learns(capsys):
    """Its loss falls below that of knowing nothing, 1."""
    config = DistillConfig(None, images=(Path("photos"),), batch_size=5)
    pictures = distill._Pictures(distill._paths(config.images), config, torch.device("cpu"))
    source = backbones.load("resnet18", "random")
    own = distillation.Distillation(source, ["layer2"], "m", 0.05, torch.float32, 0)
    own.learn_scale(pictures.of_all(5))
    steps = distillation.Steps(own, 1e-2)
    losses = [float(steps.step(*batch)) for batch in pictures.batches(0, 60)]
    assert losses[0] > 0.9 > losses[-1]


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        (["--images", "photos"], UsageError, "distill needs --images FOLDER, .* and --out FILE"),
        (["--out", "t.pth"], UsageError, "distill needs --images FOLDER, .* and --out FILE"),
        (["--images", "photos", "--out", "t.bin"], UsageError, r"--out t.bin: expected a name that ends in \.pth"),
        (["--images", "gone", "--out", "t.pth"], UsageError, "--images gone is not a folder"),
        (["--images", "empty", "--out", "t.pth"], DataError, "no images in 'empty'"),
        (["--images", "photos", "--out", "t.pth", "-b", "resnet34"], UsageError, "with 2 backbones write INDEX.LAYER"),
        (["--images", "photos", "--out", "bad.pth"], DataError, r"'\.bad\.pth\.state' is damaged \("),
    ],
)
@pytest.mark.usefixtures("photos")
def test_what_cannot_be_distilled_is_one_line(words, kind, message):
    Path("empty").mkdir()
    Path(".bad.pth.state").write_bytes(b"junk")
    with pytest.raises(kind, match=message):
        call("distill", *RESNET.split(), *words)
    assert not Path("t.pth").exists()


@pytest.mark.usefixtures("photos")
def test_an_interrupted_one_says_how_far_it_is(monkeypatch, capsys):
    def stop(*_):
        raise main.Interrupted(signal.SIGINT)

    monkeypatch.setattr(distillation.Steps, "step", stop)
    monkeypatch.setattr(main, "stop_on_signals", lambda: None)
    monkeypatch.setattr(sys, "argv", ["main.py", *WORDS, "--out", "t.pth"])
    assert main.cli() == 130
    assert "interrupted; 0 of 60000 steps are kept; the same command goes on" in capsys.readouterr().err
