"""What follows from weights is made once, and never of weights that were."""

import copy

import pytest
import torch
from torch import nn

from detection.derived import Derived


@pytest.fixture
def layer():
    return nn.Linear(3, 2)


@pytest.fixture
def seen():
    return []


@pytest.fixture
def doubled(layer, seen):
    """Twice the layer's weight, of a Derived; `seen` grows when it is made."""
    derived = Derived()

    def make():
        seen.append(1)
        return 2 * layer.weight.detach()

    return lambda: derived.of(list(layer.parameters()), make)


def test_it_is_made_once(doubled, layer, seen):
    with torch.no_grad():
        assert torch.equal(doubled(), 2 * layer.weight)
        assert doubled() is doubled()
    assert len(seen) == 1


@pytest.mark.parametrize("change", ["fused step", "in place", "loaded", "cast and back", "in inference mode"])
def test_it_is_made_anew_of_other_numbers(change, doubled, layer):
    """Fused optimisers and casts are no changes that a tensor counts."""
    with torch.no_grad():
        doubled()
    if change == "fused step":
        layer(torch.ones(1, 3)).sum().backward()
        torch.optim.Adam(layer.parameters(), fused=True).step()
    elif change == "in place":
        with torch.no_grad():
            layer.weight.mul_(3)
    elif change == "loaded":
        layer.load_state_dict(copy.deepcopy(nn.Linear(3, 2).state_dict()))
    elif change == "cast and back":
        layer.half().float()
    else:
        with torch.inference_mode():
            layer.weight.mul_(3)
    with torch.no_grad():
        assert torch.equal(doubled(), 2 * layer.weight)


def test_it_is_made_anew_for_gradients_and_other_types(doubled, seen):
    """Of autocast's type depends what products give."""
    doubled(), doubled()
    assert len(seen) == 2
    with torch.no_grad():
        doubled()
        with torch.autocast("cpu", torch.bfloat16):
            doubled(), doubled()
    assert len(seen) == 4
