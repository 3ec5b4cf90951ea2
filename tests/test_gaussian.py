"""Gaussians of patches against the arrays of other programs, and against one another."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal

import backbones
from detection import map_patches
from detection.anomaly_map import anomaly_maps
from detection.map_patches import repeated
from detection.moments import Moments, shrunk, whitening_factors
from errors import DataError, UsageError
from methods import gaussian
from methods.gaussian import Gaussian, directions, distances, improbability, mixture


def golden(name):
    file = np.load(Path(__file__).parent / "golden" / f"{name}.npz")
    return {key: torch.from_numpy(file[key]) for key in file.files if key != "meta"}


PADIM, MIXTURE = golden("padim"), golden("gaussian_mixture")
MAPS = {of: [PADIM[f"{of}_{layer}"] for layer in "abc"] for of in ("train", "test")}


def moments(rows, batch):
    """Of rows [N, P, d]."""
    found = Moments(*rows.shape[1:], rows.device)
    for part in rows.split(batch):
        found.add(part)
    return found


def small(layers=("layer1", "layer2"), size=32, **options):
    backbone = backbones.load("pixels") if layers == ("input",) else backbones.load("resnet18", "random")
    return Gaussian(backbone, layers, (size, size), **options)


def images(count, size=32, seed=0):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def embedding(maps):
    """The golden arrays' patches [N, H W, 7]."""
    planes = torch.cat([repeated(own, (8, 10)) for own in maps], dim=1)
    return planes[:, PADIM["idx"]].flatten(2).permute(0, 2, 1)


def test_padim_is_that_of_anomalib():
    """Its eps stands there twice, 0.01 and 1e-5."""
    rows = embedding(MAPS["train"])
    assert torch.equal(rows, PADIM["train_embedding"].flatten(2).permute(0, 2, 1))
    found = moments(rows, 6)
    torch.testing.assert_close(found.mean.T.float(), PADIM["mean"], rtol=0, atol=1e-6)
    covariance = found.covariance()
    covariance.diagonal(dim1=1, dim2=2).add_(0.01001)
    factor = whitening_factors(covariance, found.mean).float()
    torch.testing.assert_close(factor.mT @ factor, PADIM["inv_covariance"], rtol=1e-5, atol=1e-4)
    scores = distances(embedding(MAPS["test"]).transpose(0, 1), found.mean.float(), factor).T.unflatten(1, (8, 10))
    torch.testing.assert_close(scores.double(), PADIM["distance_float64"], rtol=1e-5, atol=0)
    torch.testing.assert_close(scores, PADIM["distance"], rtol=1e-5, atol=0)
    maps = anomaly_maps(scores, (32, 40))
    torch.testing.assert_close(maps.double(), PADIM["map_house"], rtol=1e-5, atol=0)
    torch.testing.assert_close(maps.amax(dim=(1, 2)).double(), PADIM["score_house"], rtol=1e-5, atol=0)


def test_one_gaussian_and_ledoit_wolf_are_scikit_learns():
    found = moments(MIXTURE["train"].unsqueeze(1), 50)
    torch.testing.assert_close(found.mean[0], MIXTURE["mean"], rtol=1e-8, atol=1e-12)
    covariance = found.covariance(0)
    torch.testing.assert_close(covariance[0], MIXTURE["covariance"], rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(found.shrinkage()[0], MIXTURE["lw_shrinkage"], rtol=1e-8, atol=0)
    drawn = shrunk(covariance, found.shrinkage())
    torch.testing.assert_close(drawn[0], MIXTURE["lw_covariance"], rtol=1e-8, atol=1e-12)
    for own, name in ((covariance, "mahalanobis"), (drawn, "mahalanobis_lw")):
        squared = distances(MIXTURE["test"].unsqueeze(0), found.mean, whitening_factors(own, found.mean))[0].square()
        torch.testing.assert_close(squared, MIXTURE[name], rtol=1e-7, atol=0)


@pytest.mark.parametrize("iterations", [1, 100])
def test_the_mixture_is_that_of_em(iterations):
    start = {"weights_init": MIXTURE["weights_init"], "means_init": MIXTURE["means_init"]}
    start = {name: own.numpy() for name, own in start.items()} | {"precisions_init": np.stack([np.eye(6)] * 3)}
    found = mixture(MIXTURE["train"], 3, seed=0, n_init=1, max_iter=iterations, tol=1e-10, reg_covar=1e-6, **start)
    mean, factor, log_weight = found
    name = "em1" if iterations == 1 else "em"
    torch.testing.assert_close(log_weight.exp(), MIXTURE[f"{name}_weights"], rtol=1e-4, atol=0)
    torch.testing.assert_close(mean, MIXTURE[f"{name}_means"], rtol=1e-4, atol=1e-6)
    covariance = torch.linalg.inv(factor.mT @ factor)
    torch.testing.assert_close(covariance, MIXTURE[f"{name}_covariances"], rtol=1e-4, atol=1e-5)
    scores = improbability(MIXTURE["test"], mean, factor, log_weight)
    if iterations > 1:
        torch.testing.assert_close(scores, MIXTURE["em_nll"], rtol=1e-5, atol=0)
    parts = [
        weight + multivariate_normal(m, c).logpdf(MIXTURE["test"])
        for weight, m, c in zip(log_weight.tolist(), mean.numpy(), covariance.numpy(), strict=True)
    ]
    np.testing.assert_allclose(scores.numpy(), -logsumexp(parts, axis=0), rtol=1e-8)


def test_padim_scores_are_those_of_anomalib():
    """From the same maps, with the values that it draws."""
    models = pytest.importorskip("anomalib.models.image.padim.torch_model")
    theirs = models.PadimModel(backbone="resnet18", layers=["layer1", "layer2"], pre_trained=False, n_features=20)
    ours = small(size=64, dimensions=20, eps=0.01 + 1e-5)
    ours.chosen.copy_(theirs.idx.sort().values)
    training, query = images(8, 64), images(3, 64, seed=1)
    maps = [dict(zip(theirs.layers, ours.backbone(one, theirs.layers), strict=True)) for one in (training, query)]
    theirs.memory_bank = [theirs.generate_embedding(maps[0])]
    theirs.fit()
    found = theirs.anomaly_map_generator.compute_distance(
        theirs.generate_embedding(maps[1]), [theirs.gaussian.mean, theirs.gaussian.inv_covariance]
    )
    ours.fit(training.split(3))
    scores = ours.patch_scores(ours.looked_at(ours.patches(ours.embed(query))))
    torch.testing.assert_close(scores, found[:, 0], rtol=1e-3, atol=0)


@pytest.mark.parametrize("shrinkage", ["constant", "ledoit_wolf"])
def test_blocks_of_places_are_as_all_at_once(shrinkage, monkeypatch):
    """And images in parts; every pass is counted."""
    batches, query = images(5).split(2), images(2, seed=1)
    whole, blocks = (small(dimensions=12, shrinkage=shrinkage, choose="smallest") for _ in range(2))
    whole.fit(batches)
    assert whole.passes == 2
    monkeypatch.setattr(gaussian, "WORKING_MEMORY", 8 * 12**2 * 30)
    monkeypatch.setattr(gaussian, "FACTORED", 12**2 * 7)
    monkeypatch.setattr(map_patches, "BLOCK", 1)
    read = []
    blocks.fit_embeddings(type("Counted", (list,), {"__iter__": lambda own: read.append(1) or list.__iter__(own)})(
        map(blocks.embed, batches)
    ))  # fmt: skip
    assert blocks.passes == len(read) == 1 + 3
    for name in ("mean", "factor"):
        torch.testing.assert_close(getattr(blocks, name), getattr(whole, name), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(blocks.predict(query).maps, whole.predict(query).maps, rtol=1e-4, atol=1e-4)


def test_shrinkage_at_every_place_is_scikit_learns():
    covariance = pytest.importorskip("sklearn.covariance")
    rows = torch.randn(9, 3, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5, 1, 0.1]) + 50
    found = moments(rows, 4)
    for place in range(3):
        theirs = covariance.LedoitWolf().fit(rows[:, place].double().numpy())
        assert found.shrinkage()[place].item() == pytest.approx(theirs.shrinkage_, rel=1e-6)


def test_directions():
    rows = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([3.0, 0.1, 2.0, 1.0]) + 7
    for largest, axes in ((True, [0, 2]), (False, [1, 3])):
        found = directions(rows, 2, largest)
        torch.testing.assert_close(found.T @ found, torch.eye(2), rtol=0, atol=1e-5)
        assert found[axes].square().sum() == pytest.approx(2, abs=0.05)


def test_windows_are_the_pixels_and_drawn_where_they_are():
    """-b pixels: a spot is seen by the windows around it alone."""
    detector = small(("input",), of="patches", patchsize=4, stride=2)
    x = images(1)
    found = detector.patches(detector.embed(x))
    assert found.shape == (1, 15, 15, 48) and detector.width == 48
    torch.testing.assert_close(found[0, 3, 5], x[0, :, 6:10, 10:14].flatten())
    scores = torch.zeros(1, 15, 15)
    scores[0, 3, 5] = 1
    (where,) = (detector.drawn(scores)[0] == detector.drawn(scores).max()).nonzero().float().mean(dim=0, keepdim=True)
    assert where.tolist() == pytest.approx([7.5, 11.5], abs=0.5)


@pytest.mark.parametrize("options", [{}, {"patchsize": 3, "stride": 2}, {"align_maps": True}])
def test_patches_of_maps(options):
    detector = small(dimensions=192, **options)
    x = images(2)
    first, second = (own.permute(0, 3, 1, 2) for own in detector.embed(x))
    found = detector.patches((first.permute(0, 2, 3, 1), second.permute(0, 2, 3, 1)))
    assert found.shape == (2, *detector.grid, 192)
    if not options:
        torch.testing.assert_close(found[:, 5, 2, :64], first[:, :, 5, 2])
        torch.testing.assert_close(found[:, 5, 2, 64:], second[:, :, 2, 1])
    elif "stride" in options:
        torch.testing.assert_close(found[:, 2, 1, :64], first[:, :, 3:6, 1:4].mean(dim=(2, 3)), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found[:, 2, 1, 64:], second[:, :, 1:4, 0:3].mean(dim=(2, 3)), rtol=1e-4, atol=1e-5)


def test_a_texture_is_told_by_one_gaussian_of_patches():
    """Rows in two shades, shifted at random: what breaks the order of pixels is found where it is."""
    shades = torch.arange(32).view(1, 1, 32, 1) % 4 // 2 * 2.0 - 1
    generator = torch.Generator().manual_seed(0)

    def drawn(count):
        shifts = torch.randint(4, (count,), generator=generator).tolist()
        return torch.cat([shades.roll(own, dims=2) for own in shifts]).repeat(1, 3, 1, 32) + 0.05 * torch.randn(
            count, 3, 32, 32, generator=generator
        )

    for options in ({"shrinkage": "ledoit_wolf"}, {"components": 4}):
        detector = small(("input",), of="patches", patchsize=4, dimensions=48, **options)
        detector.fit(drawn(6).split(3))
        normal, spoiled = drawn(2)
        spoiled[:, 12:18, 12:18] = spoiled[:, 12:18, 12:18].mT.clone()
        scores, maps = detector.predict(torch.stack([normal, spoiled]))
        assert scores[1] > 1.5 * scores[0]
        row, column = divmod(int(maps[1].argmax()), 32)
        assert 10 <= row <= 20 and 10 <= column <= 20


def test_what_cannot_be_is_said(monkeypatch):
    with pytest.raises(UsageError, match="--patchsize 33 does not fit layer input, which is 32 x 32"):
        small(("input",), patchsize=33)
    for options in ({}, {"of": "patches", "components": 2}):
        with pytest.raises(DataError, match="not finite: try --precision fp32"):
            small(**options).fit([images(2) * torch.inf])
    detector = small(dimensions=100)
    detector.check()
    monkeypatch.setattr(gaussian, "free_on", lambda device: 2**20)
    message = r"Gaussians of 100 values at 64 places take 0.0 GiB, .* are free: lower --dimensions, raise --stride"
    with pytest.raises(UsageError, match=message):
        detector.check()
    detector.fit([images(2)])
    assert detector.not_exported == ""
    monkeypatch.setattr(gaussian, "LARGEST_EXPORT", 100)
    assert detector.not_exported == "its 64 Gaussians take 0.0 GiB, and an export holds 2"
