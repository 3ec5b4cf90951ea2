"""What the training of all detectors shares."""

import pytest
import torch
from torch import nn

import backbones
import simplenet.training
from detection import learn
from methods import cfa, multimodal, rd
from simplenet import SimpleNet

LAYERS = ["layer1", "layer2"]
DETECTORS = {  # by the module that trains it: the detector's class, options, and the shape of its embeddings
    simplenet.training: (SimpleNet, {"target_embed_dimension": 16, "dsc_hidden": 8}, (2, 8, 8, 16)),
    cfa: (cfa.CFA, {"gamma_d": 12, "epochs": 1}, (2, 8, 8, 192)),
    rd: (rd.ReverseDistillation, {"blocks": 1, "epochs": 1}, (2, 64 * 8 * 8 + 128 * 4 * 4)),
    multimodal: (multimodal.Multimodal, {"dim": 8, "heads": 2, "depth": 1, "epochs": 1}, (2, 8, 8, 192)),
}


def test_fp16_keeps_small_gradients():
    """A gradient below float16's smallest number arrives as it does in float32, and unscaled."""
    weights = []
    for precision in (torch.float32, torch.float16):
        weight = nn.Parameter(torch.ones(3))
        loss = (weight.to(precision) * torch.tensor([1.0, 2.0, 3.0])).sum() * 2e-8
        learn(loss, [torch.optim.SGD([weight], 1e7)], precision)
        weights.append(weight.detach())
    torch.testing.assert_close(weights[0], torch.tensor([0.8, 0.6, 0.4]))
    torch.testing.assert_close(*weights, rtol=0.01, atol=0)


def test_gradients_are_of_this_step_alone():
    weight = nn.Parameter(torch.ones(2))
    for factor in (1.0, 10.0):
        learn((factor * weight).sum(), [torch.optim.SGD([weight], 0.01)], torch.float32)
    torch.testing.assert_close(weight.detach(), torch.full((2,), 1 - 0.01 - 0.1))


@pytest.mark.parametrize("module", DETECTORS, ids=lambda module: module.__name__)
def test_every_detector_learns_in_its_precision(monkeypatch, module):
    """Or float16 would have no scale; CFA computes in float32 always."""
    kind, options, shape = DETECTORS[module]
    detector = kind(backbones.load("resnet18", "random"), LAYERS, (32, 32), precision=torch.float16, **options)
    seen = []
    monkeypatch.setattr(module, "learn", lambda loss, optimizers, precision: seen.append(precision))
    list(detector.training_on([torch.randn(shape).half()]))
    assert seen == [torch.float32 if module is cfa else torch.float16]
