"""CPR: retrieval, loss and maps by the golden arrays, its networks, defects and options."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from methods.foreground import foreground, foreground_map, ring_and_middle
from methods.local_branch import LocalBranch
from methods.pairs import Pairs, pair_loss
from methods.retrieval import block_divergences, codes, divergences, histograms, local_distances, order_of

ARRAYS = np.load(Path(__file__).parent / "golden" / "cpr.npz")
META = json.loads(bytes(ARRAYS["meta"]))


def golden(name):
    return torch.from_numpy(ARRAYS[name]).float()


def patterned(shape, n):
    """The weights of the golden arrays, see `weights` of their meta."""
    x = np.sin(12.9898 * np.arange(1, np.prod(shape) + 1) + 78.233 * n) * 43758.5453
    v = (2 * (x - np.floor(x)) - 1).reshape(shape)
    v = v * np.sqrt(6) / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.1 * v
    return torch.from_numpy(v).float()


@pytest.mark.parametrize("side", ["", "_odd"])
def test_images_are_retrieved_by_what_stands_where(side):
    centres = golden(f"centres{side}")
    query = codes(golden(f"query_features{side}"), centres)
    np.testing.assert_array_equal(query[0], ARRAYS[f"query_codes{side}"])
    words = len(centres)
    references = histograms(codes(golden(f"ref_features{side}"), centres), words)
    np.testing.assert_array_equal(references, ARRAYS[f"ref_histograms{side}"])
    own = histograms(query, words)
    np.testing.assert_array_equal(own[0], ARRAYS[f"query_histogram{side}"])
    blocks = block_divergences(own, references)[0]
    torch.testing.assert_close(blocks, golden(f"kl_per_block{side}"), rtol=1e-5, atol=1e-5)
    found = divergences(own, references)
    torch.testing.assert_close(found[0], golden(f"kl_kept_sum{side}"), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(order_of(found, len(references))[0], ARRAYS[f"order_kl{side}"])


def test_the_local_branch():
    branch = LocalBranch(7, 192, 64, 10)
    weights = [own for own in branch.parameters()]
    shapes = [(number, tuple(shape)) for number, _, shape in META["weight_numbers_name_shape"]]
    assert [tuple(own.shape) for own in weights] == [shape for _, shape in shapes]
    with torch.no_grad():
        for own, (number, shape) in zip(weights, shapes, strict=True):
            own.copy_(patterned(shape, number))
        torch.testing.assert_close(branch(golden("lrb_input")), golden("lrb_train_mode"), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(branch.eval()(golden("lrb_input")), golden("lrb_eval_mode"), rtol=1e-5, atol=1e-5)


def golden_pairs():
    points, weights = (lambda name: golden(f"loss_{name}_points")), (lambda name: golden(f"loss_{name}_weight"))
    return Pairs(
        points("positive"),
        weights("positive"),
        points("negative"),
        points("ref_negative"),
        weights("negative"),
        points("anomaly"),
        weights("anomaly"),
    )


def test_the_loss_and_its_gradient():
    features = [golden(f"loss_features{i}").requires_grad_() for i in range(2)]
    maps, pairs = [golden(f"loss_backbone_features{i}") for i in range(2)], golden_pairs()
    alike, unlike = pair_loss(features, maps, pairs)
    assert alike.item() == pytest.approx(float(ARRAYS["loss_pos_loss"]), abs=1e-5)
    assert unlike.item() == pytest.approx(float(ARRAYS["loss_neg_loss"]), abs=1e-5)
    (alike + unlike).backward()
    for i, own in enumerate(features):
        torch.testing.assert_close(own.grad, golden(f"loss_grad{i}"), rtol=1e-5, atol=1e-6)
    texture = pairs._replace(distant_weight=torch.zeros_like(pairs.distant_weight))
    assert sum(pair_loss(features, maps, texture)).item() == pytest.approx(ARRAYS["loss_of_a_texture"], abs=1e-5)
