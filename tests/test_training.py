"""What the training of all detectors shares."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

import backbones
import simplenet.training
from detection import Normal, gradient_scaler, learn
from methods import cfa, multimodal, rd
from simplenet import SimpleNet

LAYERS = ["layer1", "layer2"]
DETECTORS = {  # by the module that trains it: the detector's class, options, and the shapes of its embeddings
    simplenet.training: (SimpleNet, {"target_embed_dimension": 16, "dsc_hidden": 8}, (2, 8, 8, 16)),
    cfa: (cfa.CFA, {"gamma_d": 12, "epochs": 1}, (2, 8, 8, 192)),
    rd: (rd.ReverseDistillation, {"blocks": 1, "epochs": 1}, [(2, 8, 8, 64), (2, 4, 4, 128)]),
    multimodal: (multimodal.Multimodal, {"dim": 8, "heads": 2, "depth": 1, "epochs": 1}, (2, 8, 8, 192)),
}


def drawn(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    if isinstance(shape, tuple):
        return torch.randn(shape, generator=generator).to(dtype)
    return tuple(torch.randn(own, generator=generator).to(dtype) for own in shape)


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


@pytest.mark.parametrize("kind", [torch.optim.SGD, partial(torch.optim.Adam, fused=True)])
def test_fp16_skips_gradients_that_are_not_finite(kind):
    """Neither weights nor what the optimizer keeps of gradients move; the next step is as if there had been none."""
    weights = []
    for factors in ((1e36, 2.0), (2.0,)):
        weight = nn.Parameter(torch.ones(3))
        optimizer, scaler = kind([weight], lr=0.1), gradient_scaler(weight.device, torch.float16)
        for factor in factors:
            learn((weight * factor).sum(), [optimizer], torch.float16, scaler)
        weights.append(weight.detach())
        assert scaler.get_scale() == 2.0 ** (17 - len(factors))
    assert torch.equal(*weights)
    assert not torch.equal(weights[0], torch.ones(3))


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
    monkeypatch.setattr(module, "learn", lambda loss, optimizers, precision, *scaler: seen.append((precision, *scaler)))
    training = detector.training_on(Normal([drawn(shape, torch.float16)]))
    list(training)
    expected = (torch.float32,) if module is cfa else (torch.float16, training.trainer.scaler)
    assert seen == [expected]


@pytest.mark.parametrize("precision", [torch.float16, torch.float32])
@pytest.mark.parametrize("module", [own for own in DETECTORS if own is not cfa], ids=lambda module: module.__name__)
def test_training_goes_on_with_its_scale(module, precision):
    """To the same bytes, where all steps before were skipped."""
    kind, options, shape = DETECTORS[module]
    options = {**options, "meta_epochs" if kind is SimpleNet else "epochs": 3}
    batch = drawn(shape, precision)

    def training(state=None):
        detector = kind(backbones.load("resnet18", "random"), LAYERS, (32, 32), precision=precision, **options)
        return detector.training_on(Normal([batch]), state=state)

    whole = training()
    whole.trainer.scaler.load_state_dict({**whole.trainer.scaler.state_dict(), "scale": 2.0**90})
    epochs = iter(whole)
    next(epochs)
    state = copy.deepcopy(whole.state_dict())
    again = training(state)
    list(epochs)
    list(again)
    for first, second in zip(tensors(whole.state_dict()), tensors(again.state_dict()), strict=True):
        assert torch.equal(first, second)
    assert state["trainer"]["scaler"].get("scale") == (2.0**89 if precision == torch.float16 else None)
    assert again.trainer.scaler.state_dict() == whole.trainer.scaler.state_dict()


def tensors(state):
    """All tensors of a state."""
    values = state.values() if isinstance(state, dict) else state
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict | list):
            yield from tensors(value)
