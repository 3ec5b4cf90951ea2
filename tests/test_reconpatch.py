"""ReConPatch: similarities, loss, a step and the averages by the golden arrays, and what is made of odd patches."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from methods.reconpatch import (
    contextual_similarity,
    follow,
    median,
    pairwise_similarity,
    relaxed_contrastive_loss,
    squared_distances,
)

ARRAYS = np.load(Path(__file__).parent / "golden" / "reconpatch.npz")
META = json.loads(bytes(ARRAYS["meta"]))


def golden(name):
    return torch.from_numpy(ARRAYS[name]).float()


def network(prefix=""):
    """f, then g."""
    layers = nn.Linear(9, 6), nn.Linear(6, 5)
    for own, name in zip(layers, "fg", strict=True):
        own.load_state_dict({part: golden(f"{prefix}{name}.{part}") for part in ("weight", "bias")})
    return nn.Sequential(*layers)


def close(found, name):
    torch.testing.assert_close(found, golden(name), rtol=1e-5, atol=1e-5)


def test_similarities():
    z = network("ema_")(golden("patch_features")).detach()
    close(z, "z_bar")
    squared = squared_distances(z)
    pairwise, contextual = pairwise_similarity(squared, META["sigma"]), contextual_similarity(squared, META["k"])
    close(pairwise, "pairwise")
    close(contextual, "contextual")
    close(META["alpha"] * pairwise + (1 - META["alpha"]) * contextual, "omega")


def test_the_loss_a_step_and_the_averages():
    trained, slow = network(), network("ema_")
    z = trained(golden("patch_features"))
    z.retain_grad()
    loss = relaxed_contrastive_loss(z, golden("omega"), META["margin"])
    close(loss, "loss")
    loss.backward()
    close(z.grad, "grad_z")
    with torch.no_grad():
        for name, own in zip("fg", trained, strict=True):
            for part, weight in own.named_parameters():
                close(weight.grad, f"grad_{name}.{part}")
                close(weight.sub_(META["lr_of_plain_sgd"] * weight.grad), f"sgd_{name}.{part}")
    follow(slow, trained, META["gamma"])
    for name, own in zip("fg", slow, strict=True):
        for part, weight in own.named_parameters():
            close(weight.detach(), f"ema_after_{name}.{part}")


def test_the_loss_by_other_weights():
    """Those of an unofficial program, with its own loss of them."""
    loss = relaxed_contrastive_loss(golden("z"), golden("tf_weights"), META["margin"])
    assert loss.item() == pytest.approx(float(ARRAYS["tf_loss"]), rel=1e-4)


@pytest.mark.parametrize("count", [1, 6])
def test_patches_that_are_all_the_same_have_a_loss_and_a_gradient(count):
    z = torch.ones(count, 3, requires_grad=True)
    squared = squared_distances(z.detach())
    omega = (pairwise_similarity(squared, median(squared)) + contextual_similarity(squared, 3)) / 2
    loss = relaxed_contrastive_loss(z, omega, 1.0)
    loss.backward()
    assert loss.isfinite()
    assert z.grad.isfinite().all()


def test_of_patches_equally_far_the_first_is_nearer():
    squared = torch.ones(5, 5) - torch.eye(5)
    found = contextual_similarity(squared, 2)
    assert found[0].tolist() == [1, 1, 0.25, 0.25, 0.25]  # N(0) = N(1) = {0, 1}, of all others {i, 0}
    assert found[1].tolist() == [1, 1, 0, 0, 0]


def test_the_median_is_of_different_patches():
    squared = torch.tensor([[0.0, 1, 2], [1, 0, 5], [2, 5, 0]])
    assert median(squared) == 2


def test_distances_far_from_zero_keep_their_digits():
    z = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    far = z.double() + 1000
    torch.testing.assert_close(squared_distances(far.float()), torch.cdist(z, z) ** 2, rtol=1e-3, atol=1e-3)
