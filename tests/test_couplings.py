"""Couplings: a golden step and its inverse, log-determinants by Jacobians, and the gradient written by hand."""

from functools import partial

import pytest
import torch
from golden_flows import arrays, flow_jacobian, step_state
from torch import nn

from methods.couplings import Conv, Flow, Step, _couple, _Coupling

GOLDEN, META = arrays("fastflow")
NAMES = {
    "order": "perm",
    "scale": "global_scale",
    "offset": "global_offset",
    "hidden.0.weight": "conv0.weight",
    "hidden.0.bias": "conv0.bias",
    "out.weight": "conv2.weight",
    "out.bias": "conv2.bias",
}


def subnet(kernel, inputs, outputs):
    first, last = (Conv(inputs, count, kernel) for count in (inputs, outputs))
    return nn.Sequential(first, nn.ReLU()), last


def flow(channels, *kernels, seed=0):
    """Steps whose weights are larger than at the start of training, so that every part of them tells."""
    torch.manual_seed(seed)
    made = Flow(Step(channels, partial(subnet, kernel), 2.0) for kernel in kernels)
    for step in made.steps:
        nn.init.normal_(step.scale, 9, 2)
        nn.init.normal_(step.offset)
        nn.init.normal_(step.out.weight)
    return made


@pytest.mark.parametrize("learns", [True, False])
def test_a_golden_step_and_its_inverse(learns):
    step = Step(6, partial(subnet, 3), META["clamp"])
    step.load_state_dict(step_state(GOLDEN, "step_", NAMES))
    close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)
    with torch.set_grad_enabled(learns):
        (affine,), _ = Flow([step])._affines()
        gain = torch.cat([affine.gain, affine.log_gain.exp()])
        close(gain, GOLDEN("step_scale_after_activation"))
        y, logdet = Flow([step])(GOLDEN("step_x"))
        close(y, GOLDEN("step_y"))
        close(logdet, GOLDEN("step_logdet"))
        x, back = Flow([step]).inverse(GOLDEN("step_y"))
        close(x, GOLDEN("step_back"))
        close(back, GOLDEN("step_back_logdet"))


@pytest.mark.parametrize("channels", [2, 5])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_log_determinants_are_the_jacobians(channels, precision):
    """Whatever subnets round to."""
    own, x = flow(channels, 3, 1, 3), torch.randn(channels, 2, 2)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision != torch.float32):
        z, logdet = own(x.unsqueeze(0))
        expected = flow_jacobian(lambda one: own(one)[0], x)
    assert (z.dtype, logdet.dtype) == (torch.float32, torch.float32)
    assert abs(expected) > 1
    torch.testing.assert_close(logdet[0].double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("seed", "shape"), list(enumerate([(3, 2, 1, 1), (1, 5, 4, 3), (2, 8, 2, 5), (1, 13, 3, 3)])))
def test_the_inverse_gives_the_input_back(seed, shape):
    own = flow(shape[1], 3, 1, 3, seed=seed)
    for step in own.steps:
        nn.init.normal_(step.scale, 9.98, 0.1)
    x = torch.randn(shape)
    with torch.no_grad():
        z, logdet = own(x)
        found, back = own.inverse(z)
    torch.testing.assert_close(found, x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(back, -logdet, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(z, x, atol=0.1)


@pytest.fixture
def coupled():
    """Arguments of a coupling but for alpha: of x, a, gains and offset, in float64."""
    torch.manual_seed(0)
    shapes = [(2, 3, 2, 3), (2, 2, 2, 3), (2, 4, 2, 3), (3,), (3,), (2,)]
    inputs = [torch.rand(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    order = torch.randperm(5)
    return [*inputs, order, order.argsort(), 2.0]


def test_the_gradient_written_by_hand(coupled):
    """Against differences."""
    assert torch.autograd.gradcheck(_Coupling.apply, coupled)


@torch.no_grad()
def test_what_is_traced_is_what_is_computed(coupled, monkeypatch):
    """Graphs have no tensors to write into."""
    expected = _couple(*coupled)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for one, other in zip(_couple(*coupled), expected, strict=True):
        torch.testing.assert_close(one, other)
