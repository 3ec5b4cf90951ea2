"""CFA: its equations against plain loops, and everything around it as a user meets it."""

import json
import math

import numpy as np
import pandas as pd
import plain
import pytest
import torch
from conftest import SMALL_CFA, SMALL_DATA
from sklearn.cluster import KMeans
from test_resume import folder
from torch import nn

import backbones
import main
import simplenet
from detection import Normal
from detection.anomaly_map import anomaly_maps
from detection.neighbours import nearest
from errors import DataError, UsageError
from methods import cfa
from methods.cfa import CFA

DIMENSION = (64 + 128) // 12


def small(**options):
    backbone = backbones.load("resnet18", "random")
    return CFA(backbone, ["layer1", "layer2"], (32, 32), **{"gamma_d": 12, "epochs": 2, **options})


def embeddings(images=6, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, 8, 8, 192, generator=generator).split(batch)


def test_the_loss_equals_the_equations():
    torch.manual_seed(0)
    features, centres = torch.randn(2, 5, 4), torch.randn(9, 4)
    k, j, radius, alpha, nu = 2, 3, 2.0, 0.3, 0.01
    attraction = repulsion = 0.0
    for feature in features.flatten(0, 1).tolist():
        squares = sorted(sum((a - b) ** 2 for a, b in zip(feature, c, strict=True)) for c in centres.tolist())
        attraction += sum(max(0, d - radius**2) for d in squares[:k]) / (10 * k)
        repulsion += sum(max(0, radius**2 - d - alpha) for d in squares[k : k + j]) / (10 * j)
    found = cfa.coupled_hypersphere_loss(features, centres, torch.tensor(radius), k, j, alpha, nu)
    assert attraction > 0 and repulsion > 0
    assert found.item() == pytest.approx((attraction + repulsion) / nu, rel=1e-5)


def test_the_gradient_is_that_of_the_plain_expression():
    features, centres = torch.randn(2, 7, 5, dtype=torch.float64), torch.randn(70, 5, dtype=torch.float64)
    grads = []
    for distances in (cfa._SquaredDistances.apply, lambda f, c, i: (f.unsqueeze(2) - c[i]).square().sum(-1)):
        own = features.clone().requires_grad_()
        found = distances(own, centres, nearest(features, centres, 4))
        (found * torch.arange(1.0, 5.0)).sum().backward()
        grads.append(own.grad)
    torch.testing.assert_close(*grads)


def test_the_score_equals_the_equations():
    distances = [0.5, 0.9, 2.0]
    weight = math.exp(-0.5) / sum(math.exp(-d) for d in distances)
    assert cfa.patch_scores(torch.tensor([[2.0, 0.5, 0.9]])).item() == pytest.approx(weight * 0.5)
    detector, (batch,) = small(), embeddings(2)
    detector.memory.copy_(torch.randn(detector.memory.shape))
    found = detector.score(batch)
    described = detector.descriptor(batch).flatten(1, 2)
    closest = torch.cdist(described, detector.memory.expand(2, -1, -1)).sort(-1).values[..., :3]
    scores = closest[..., 0] * closest.neg().softmax(-1)[..., 0]
    expected = anomaly_maps(scores.view(2, 8, 8), (32, 32))
    torch.testing.assert_close(found.maps, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(found.scores, found.maps.amax((1, 2)))


def test_patch_features_are_means_of_neighbours():
    first, second = torch.randn(2, 3, 6, 6), torch.randn(2, 4, 3, 3)
    found = cfa.patch_features([first, second])
    assert found.shape == (2, 6, 6, 7)
    torch.testing.assert_close(found[:, 2, 3, :3], first[:, :, 1:4, 2:5].mean((2, 3)))
    torch.testing.assert_close(found[:, 0, 0, :3], first[:, :, :2, :2].sum((2, 3)) / 9)  # zeros outside count
    resized = nn.functional.interpolate(nn.functional.avg_pool2d(second, 3, 1, 1), size=(6, 6), mode="bilinear")
    torch.testing.assert_close(found[..., 3:], resized.permute(0, 2, 3, 1))


def test_the_descriptor_is_a_coordconv():
    detector, (batch,) = small(), embeddings(2)
    rows = torch.linspace(-1, 1, 8).view(1, 1, 8, 1).expand(2, 1, 8, 8)
    stacked = torch.cat([batch.permute(0, 3, 1, 2), rows, rows.transpose(2, 3)], dim=1)
    weight = detector.descriptor.weight[:, :, None, None]
    expected = nn.functional.conv2d(stacked, weight, detector.descriptor.bias).permute(0, 2, 3, 1)
    torch.testing.assert_close(detector.descriptor(batch), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("gamma_c", "centres"), [(1, 64), (3, 21)])
def test_the_memory_bank_does_not_grow_with_the_images(gamma_c, centres):
    for images in (2, 7):
        detector, batches = small(gamma_c=gamma_c), embeddings(images, 3)
        detector.begin(Normal(batches))
        assert detector.memory.shape == (centres, DIMENSION)
        with torch.no_grad():
            means = torch.cat([detector.descriptor(batch) for batch in batches]).mean(0).flatten(0, 1)
        if gamma_c == 1:
            torch.testing.assert_close(detector.memory, means)
        else:  # every centre of k-means is the mean of the places that are nearest to it
            own = torch.cdist(means, detector.memory).argmin(1)
            expected = torch.stack([means[own == i].mean(0) for i in range(centres)])
            torch.testing.assert_close(detector.memory, expected, rtol=1e-3, atol=1e-4)


def test_the_seed_decides_the_centres():
    batches, found = embeddings(4), []
    for seed in (0, 1):
        detector = small(gamma_c=3, seed=seed)
        detector.begin(Normal(batches))
        with torch.no_grad():
            means = torch.cat([detector.descriptor(batch) for batch in batches]).mean(0).flatten(0, 1)
        expected = KMeans(21, n_init=1, max_iter=3000, random_state=seed).fit(means.numpy()).cluster_centers_
        np.testing.assert_allclose(detector.memory, expected, rtol=0, atol=1e-4)
        found.append(cfa.memory_bank(batches, 21, seed))
    assert not torch.allclose(*found)


def test_places_that_do_not_differ_make_a_bank_without_a_word(recwarn):
    assert cfa.memory_bank([torch.ones(3, 4, 4, 5)], 4, seed=0).shape == (4, 5)
    assert not recwarn.list
    with pytest.raises(DataError, match="not finite"):
        cfa.memory_bank([torch.full((3, 4, 4, 5), torch.inf)], 4, seed=0)


def test_it_takes_images_from_python():
    detector = small(epochs=1)
    images = torch.randn(4, 3, 32, 32)
    detector.fit(images.split(2))
    other = small(epochs=1)
    other.fit_embeddings([other.embed(batch) for batch in images.split(2)])
    found, expected = detector.predict(images), other.score(other.embed(images))
    assert found.maps.shape == (4, 32, 32)
    assert torch.equal(found.maps, expected.maps) and torch.equal(found.scores, expected.scores)


def test_training_draws_patches_to_the_centres():
    detector, batches = small(epochs=30), embeddings()
    losses = []
    detector.fit_embeddings(batches, lambda stats: losses.append(stats.loss))
    assert losses[-1] < losses[0] / 2
    assert detector.radius > 1e-5  # it is learned
    assert detector.passes == 31


def test_a_step_is_adamws_with_amsgrad():
    """On descriptor and r, down the gradient of the loss; later batches have far smaller gradients than the first."""
    detector = small(lr=1.0, weight_decay=0.3, k_nearest=2, j_hard=4, radius=3.0, alpha=0.2, nu=0.5)
    detector.memory.copy_(torch.randn(detector.memory.shape, generator=torch.Generator().manual_seed(0)))
    learned = [*detector.descriptor.parameters(), detector.radius]
    before = [weight.detach().clone() for weight in learned]
    gradients = []

    def batches():
        for batch, size in zip(embeddings(8), (30.0, 1.0, 1.0, 1.0), strict=True):
            loss = cfa.coupled_hypersphere_loss(
                detector.descriptor(size * batch).flatten(1, 2),
                detector.memory,
                radius=detector.radius,
                k_nearest=2,
                j_hard=4,
                alpha=0.2,
                nu=0.5,
            )
            gradients.append(torch.autograd.grad(loss, learned))
            yield size * batch

    memory = detector.memory.clone()
    assert len(list(cfa._Trainer(detector).steps(batches()))) == 4
    for i, weight in enumerate(learned):
        own = [one[i] for one in gradients]
        expected = plain.adam(before[i], own, 1.0, decoupled_decay=0.3, amsgrad=True)
        np.testing.assert_allclose(weight.detach(), expected, rtol=0, atol=2e-5)
    assert torch.equal(detector.memory, memory)


def test_whitening_makes_the_scale_of_features_no_matter():
    scores = []
    for scale in (1.0, 1000.0):
        detector = small(whiten=0.1, epochs=1, lr=1e-12)
        batches = [(batch + 3) * scale * torch.linspace(0.1, 5, 192) for batch in embeddings(20)]
        detector.fit_embeddings(batches)
        described = torch.cat([detector.descriptor(b).flatten(0, 2) for b in batches])
        assert described.std().item() == pytest.approx(DIMENSION**-0.5, rel=0.1)
        torch.testing.assert_close(described.mean(0), torch.zeros(DIMENSION), rtol=0, atol=1e-3)
        scores.append(detector.score(batches[0]).scores)
    torch.testing.assert_close(*scores, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gamma_d": 193}, "--gamma_d 193 must be from 1 to 192"),
        ({"gamma_c": 11}, "--gamma_c 11 leaves 5 centres"),
        ({"k_nearest": 0}, "must be 1 or more"),
    ],
)
def test_what_leaves_nothing_is_refused(options, words):
    with pytest.raises(UsageError, match=words):
        small(**options)


@pytest.fixture(scope="module")
def run(mvtec, tmp_path_factory):
    """A finished run over both classes; tests must not change it."""
    where = tmp_path_factory.mktemp("cfa")
    words = ["--results_path", str(where / "results"), "--precision", "fp32", *SMALL_CFA, "dataset", *SMALL_DATA]
    main.main([*words, "mvtec", str(mvtec)], standalone_mode=False)
    return folder(where)


def test_a_run_records_what_it_watches(run):
    history = pd.read_csv(run / "history.csv")
    assert list(history.columns[:6]) == ["class", "seed", "meta_epoch", "loss", "radius", "image_auroc"]
    assert len(history) == 4
    description = json.loads((run / "models/0/mvtec_bolt/model.json").read_text())
    assert (description["detector"], description["options"]["gamma_d"]) == ("cfa", 12)
    assert pd.read_csv(run / "results.csv")["pro"].notna().all()


def test_a_model_of_cfa_is_none_of_simplenet(run):
    with pytest.raises(DataError, match="is of detector 'cfa', not of net"):
        simplenet.load(run / "models/0/mvtec_bolt")
