"""FastFlow: the stack, its loss, maps and training by the golden arrays; by anomalib where it is installed."""

import numpy as np
import pytest
import torch
from golden_flows import Shapes, arrays, step_state

import backbones
from errors import UsageError
from methods.fastflow import FastFlow

GOLDEN, META = arrays("fastflow")
SIZE = META["image_size"], META["image_size"]
LAYERS = range(3)
STEPS = META["flow_steps"]
NAMES = {
    "order": "perm",
    "scale": "scale",
    "offset": "offset",
    "hidden.0.weight": "conv0.weight",
    "hidden.0.bias": "conv0.bias",
    "out.weight": "conv2.weight",
    "out.bias": "conv2.bias",
}


def of_shapes(*shapes, **options):
    return FastFlow(Shapes(list(shapes)), [f"layer{i}" for i, _ in enumerate(shapes)], SIZE, **options)


def close(found, array):
    torch.testing.assert_close(found, GOLDEN(array), rtol=1e-5, atol=1e-5)


@pytest.fixture
def maps():
    return [GOLDEN(f"map_{layer}") for layer in LAYERS]


@pytest.fixture
def golden(maps):
    """The detector that the arrays are of."""
    detector = of_shapes(*(own.shape[1:] for own in maps), steps=STEPS)
    state = {}
    for layer in LAYERS:
        state |= {f"norms.{layer}.{part}": GOLDEN(f"norm_{layer}_{part}") for part in ("weight", "bias")}
        for step in range(STEPS):
            own = step_state(GOLDEN, f"flow_{layer}_{step}_", NAMES)
            state |= {f"flows.{layer}.steps.{step}.{name}": tensor for name, tensor in own.items()}
    detector.load_state_dict(state)
    return detector


def test_the_stack(golden, maps):
    for layer, (flow, own) in enumerate(zip(golden.flows, golden.normed(maps), strict=True)):
        z, logdet = flow(own)
        close(own, f"normed_{layer}")
        close(z, f"z_{layer}")
        close(logdet, f"logdet_{layer}")


def test_the_loss_and_its_gradients(golden, maps):
    loss = golden.loss(maps)
    loss.backward()
    close(loss, "loss")
    first = golden.flows[0].steps[0]
    close(first.hidden[0].weight.grad, "grad_flow_0_0_conv0.weight")
    close(first.scale.grad, "grad_flow_0_0_scale")
    close(golden.norms[1].weight.grad, "grad_norm_1_weight")


def test_maps_and_scores(golden, maps):
    scores, drawn = golden.score(tuple(maps))
    close(drawn, "anomaly_map")
    close(scores, "score_max")


def test_training(golden, maps):
    """The losses before each of five steps."""
    losses = [stats.loss.item() for stats in golden.trainer().steps([maps] * 5)]
    np.testing.assert_allclose(losses, GOLDEN("adam_losses"), rtol=1e-6)


def both(module, other):
    """The parameters of two layers in pairs."""
    return list(zip(module.parameters(), other.parameters(), strict=True))


def test_training_is_anomalibs():
    """Ten steps from equal weights, where it is installed: losses, weights, maps."""
    pytest.importorskip("FrEIA")
    theirs = pytest.importorskip("anomalib.models.image.fastflow.torch_model")
    loss_of = pytest.importorskip("anomalib.models.image.fastflow.loss").FastflowLoss()
    shapes = [(6, 8, 8), (9, 4, 4)]
    ours = of_shapes(*shapes, steps=4)
    blocks = [theirs.create_fast_flow_block(list(shape), False, 1.0, 4) for shape in shapes]
    norms = [torch.nn.LayerNorm(shape) for shape in shapes]
    copied = []  # their tensor, ours
    for block, flow in zip(blocks, ours.flows, strict=True):
        for their_step, step in zip(block.module_list, flow.steps, strict=True):
            step.order.copy_(their_step.w_perm.flatten(1).argmax(1))
            copied += [(their_step.global_scale, step.scale), (their_step.global_offset, step.offset)]
            copied += both(their_step.subnet[0], step.hidden[0]) + both(their_step.subnet[2], step.out)
    for their_tensor, tensor in copied:
        tensor.data.copy_(their_tensor.data.view_as(tensor))
    copied += [pair for norm, own in zip(norms, ours.norms, strict=True) for pair in both(norm, own)]
    optimizer = torch.optim.Adam([one for one, _ in copied], lr=1e-3, weight_decay=1e-5)
    batches = [[torch.randn(3, *shape) + 1 for shape in shapes] for _ in range(10)]

    def latent(batch):
        return zip(*(block(norm(own)) for block, norm, own in zip(blocks, norms, batch, strict=True)), strict=True)

    expected = []
    for batch in batches:
        loss = loss_of(*map(list, latent(batch)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    losses = [stats.loss.item() for stats in ours.trainer().steps(batches)]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    for their_tensor, tensor in copied:
        torch.testing.assert_close(tensor.flatten(), their_tensor.flatten(), rtol=0, atol=1e-4)
    with torch.no_grad():
        drawn = theirs.AnomalyMapGenerator(SIZE)(next(latent(batches[0]))).squeeze(1)
    torch.testing.assert_close(ours.score(tuple(batches[0])).maps, drawn, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("shapes", "options", "millions"),
    [
        (((64, 64, 64), (128, 32, 32), (256, 16, 16)), {}, 2.59),
        (((64, 64, 64), (128, 32, 32), (256, 16, 16)), {"conv3x3_only": True}, 4.66),
        (((256, 64, 64), (512, 32, 32), (1024, 16, 16)), {}, 41.34),
    ],
)
def test_parameters_are_as_many_as_published(shapes, options, millions):
    with backbones.shapes_only():
        detector = of_shapes(*shapes, **options)
    assert sum(own.numel() for own in detector.flows.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


def test_a_transformers_tokens():
    """The norm of their cells has no weights, and subnets are narrow."""
    backbone = backbones.load("vit_tiny_patch16_224", "random")
    detector = FastFlow(backbone, ["blocks.1"], (32, 64), steps=2, hidden_ratio=0.16, norm="cell")
    (own,) = detector.normed(detector.embed(torch.randn(2, 3, 32, 64)))
    assert own.shape == (2, 192, 2, 4) and not list(detector.norms)
    torch.testing.assert_close(own.mean(1), torch.zeros(2, 2, 4), rtol=0, atol=1e-5)
    torch.testing.assert_close(own.std(1, correction=0), torch.ones(2, 2, 4), rtol=0, atol=1e-3)
    assert detector.flows[0].steps[0].hidden[0].out_channels == 15  # of 0.16 x 96
    assert detector.predict(torch.randn(2, 3, 32, 64)).maps.shape == (2, 32, 64)


def test_a_layer_of_one_channel_is_refused():
    with pytest.raises(UsageError, match="layer layer1 has 1 channels, and a flow needs 2 or more"):
        of_shapes((4, 2, 2), (1, 2, 2))
