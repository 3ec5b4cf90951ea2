"""Sparse coding against the arrays of other programs, and what it learns of patches that atoms are known of."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso

import backbones
from backbones.alignment import resampled
from detection import Normal
from detection.map_patches import MapDetector
from detection.moments import Moments, whitening_factors
from methods import sparse
from methods.sparse import SparseCoding, centred, covering, fista, learn_dictionary, unusual

FILE = np.load(Path(__file__).parent / "golden" / "sparse_coding.npz")
GOLDEN = {name: torch.from_numpy(FILE[name]) for name in FILE.files if name != "meta"}
META = json.loads(str(FILE["meta"]))
ATOMS, PATCHES, PRICE, SIDE = GOLDEN["dictionary"], GOLDEN["test_patches"], META["lam"], META["patch"]
LARGEST = torch.linalg.eigvalsh(ATOMS @ ATOMS.T)[-1]


def objective(rows, codes, atoms=ATOMS, price=PRICE):
    return (rows - codes @ atoms).square().sum(dim=1) / 2 + price * codes.abs().sum(dim=1)


def small(layers=("input",), size=32, **options):
    backbone = backbones.load("pixels") if layers == ("input",) else backbones.load("resnet18", "random")
    return SparseCoding(backbone, layers, (size, size), **options)


def stripes(count, seed=0):
    """Waves of one length in two directions, of any phase and strength: [count, 3, 32, 32]."""
    generator = torch.Generator().manual_seed(seed)
    phase, strength, across = (torch.rand(count, 1, 1, generator=generator) for _ in range(3))
    along = torch.arange(32.0)
    waves = (0.5 + strength) * torch.sin(2 * torch.pi * (along / 8 + phase)) * torch.ones(count, 32, 1)
    waves = torch.where(across > 0.5, waves, waves.mT)
    return waves.unsqueeze(1).repeat(1, 3, 1, 1) + 0.02 * torch.randn(count, 3, 32, 32, generator=generator)


def test_codes_are_those_of_other_programs():
    """The same steps give the same codes, and many of them scikit-learn's lasso."""
    found = fista(PATCHES[:50], ATOMS, PRICE, LARGEST, 50)
    torch.testing.assert_close(found, GOLDEN["codes_fista50"], rtol=0, atol=1e-9)
    found = fista(PATCHES, ATOMS, PRICE, LARGEST, 2000)
    torch.testing.assert_close(objective(PATCHES, found), GOLDEN["objective"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("price", [0.1, 0.5])
def test_the_lasso_is_scikit_learns(price):
    generator = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(20, 12, generator=generator, dtype=torch.float64), dim=1)
    rows = torch.randn(30, 12, generator=generator, dtype=torch.float64)
    theirs = Lasso(price / 12, fit_intercept=False, tol=1e-12, max_iter=100_000)  # it divides by the values' number
    expected = torch.from_numpy(np.stack([theirs.fit(atoms.T.numpy(), row).coef_ for row in rows.numpy()]))
    found = fista(rows, atoms, price, torch.linalg.eigvalsh(atoms @ atoms.T)[-1], 3000)
    objectives = (objective(rows, own, atoms, price) for own in (found, expected))
    torch.testing.assert_close(*objectives, rtol=1e-6, atol=0)


def test_scores_and_maps_are_those_of_other_programs():
    windows = torch.nn.functional.unfold(GOLDEN["test"].unsqueeze(0).unsqueeze(0), SIDE)[0].T
    torch.testing.assert_close(centred(windows), PATCHES, rtol=0, atol=1e-12)
    moments = Moments(1, 2, torch.device("cpu"))
    moments.add(GOLDEN["train_features"].unsqueeze(1))
    factor = whitening_factors(moments.covariance(correction=0), moments.mean)
    scores = unusual(GOLDEN["test_features"], moments.mean, factor, one_sided=False)
    torch.testing.assert_close(scores, GOLDEN["mahalanobis"], rtol=1e-5, atol=0)
    height, width = GOLDEN["test"].shape
    rows, columns = (covering(n - SIDE + 1, n, SIDE, 1) for n in (height, width))
    maps = resampled(scores.view(1, height - SIDE + 1, width - SIDE + 1), rows, columns)
    torch.testing.assert_close(maps[0].double(), GOLDEN["map"], rtol=1e-5, atol=0)


def test_less_than_normal_is_not_unusual():
    mean, factor = torch.tensor([[1.0, 2.0, 0.0]]), torch.eye(3).unsqueeze(0)
    found = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 0.0], [1.0, 2.0, -2.0]])
    assert unusual(found, mean, factor, one_sided=True).tolist() == [0, 4, 4]
    assert unusual(found, mean, factor, one_sided=False).tolist() == [5, 8, 4]


def test_a_dictionary_learns_what_patches_are_made_of():
    """Rows that it has not seen cost much less than by the atoms that it began with."""
    generator = torch.Generator().manual_seed(0)
    atoms = torch.nn.functional.normalize(torch.randn(6, 16, generator=generator), dim=1)
    weights = torch.randn(1200, 6, generator=generator) * (torch.rand(1200, 6, generator=generator) < 0.25)
    rows, unseen = (weights @ atoms).split([1000, 200])
    start = torch.nn.functional.normalize(torch.randn(8, 16, generator=generator), dim=1)
    found = learn_dictionary(rows, start, 0.05, seed=0)
    torch.testing.assert_close(found.square().sum(dim=1), torch.ones(8))

    def cost(own):
        codes = fista(unseen, own, 0.05, torch.linalg.eigvalsh(own @ own.T)[-1], 300)
        return objective(unseen, codes, own, 0.05).mean()

    assert cost(found) < 0.5 * cost(start)


@pytest.mark.parametrize(("cells", "length", "side", "stride"), [(9, 11, 3, 1), (4, 12, 4, 2), (3, 12, 2, 5)])
def test_every_pixel_is_covered(cells, length, side, stride):
    """By the windows over it alike; those between or behind all windows by the nearest."""
    found = covering(cells, length, side, stride)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(length))
    for pixel in range(length):
        over = [k for k in range(cells) if k * stride <= pixel < k * stride + side]
        assert found[pixel].nonzero()[:, 0].tolist() == over or not over
    if stride == 5:
        assert found[3].tolist() == [1, 0, 0] and found[4].tolist() == [0, 1, 0]


@pytest.mark.parametrize("options", [{}, {"score": "error"}, {"brightness": True}])
def test_what_breaks_a_texture_is_found_where_it_is(options, monkeypatch):
    detector = small(patchsize=8, stride=2, atoms=24, rows=600, **options)
    (stats,) = detector.training_on(Normal([detector.embed(own) for own in stripes(8).split(4)]))
    assert 0.5 < stats.details["active_atoms"] < 8 and 1 <= stats.details["atoms"] <= 24
    normal, spoiled = stripes(2, seed=1)
    spoiled[:, 12:20, 12:20] = torch.randn(8, 8, generator=torch.Generator().manual_seed(2))
    found = detector.predict(torch.stack([normal, spoiled]))
    assert found.scores[1] > 2 * found.scores[0]
    row, column = divmod(int(found.maps[1].argmax()), 32)
    assert 10 <= row <= 21 and 10 <= column <= 21
    monkeypatch.setattr(sparse, "BLOCK", 7 * len(detector.dictionary))
    again = detector.predict(torch.stack([normal, spoiled]))
    torch.testing.assert_close(again.maps, found.maps, rtol=1e-4, atol=1e-4)


def test_a_flat_spot_is_seen_by_its_brightness():
    def scores(**options):
        detector = small(patchsize=8, stride=2, atoms=24, rows=600, score="one_sided", **options)
        detector.fit(stripes(8).split(4))
        spoiled = stripes(1, seed=1)
        spoiled[..., 8:24, 8:24] = 1.5
        found = detector.patch_scores(detector.patches(detector.embed(spoiled)).flatten(0, 2))
        return found.view(13, 13)[4:9, 4:9]  # windows of the spot alone

    assert scores().max() == 0
    assert scores(brightness=True).min() > 10


def test_maps_of_layers_are_drawn_as_others_are():
    detector = small(("layer1", "layer2"), atoms=8)
    assert not detector.of_pixels and detector.width == 192
    scores = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(detector.drawn(scores), MapDetector.drawn(detector, scores))
