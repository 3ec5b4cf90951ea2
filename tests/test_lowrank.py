"""Low rank and sparse against arrays, planted parts, and solvers of another kind."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

import backbones
from methods.lowrank import LowRank, added, decomposed, directions

FILE = np.load(Path(__file__).parent / "golden" / "rpca.npz")
GOLDEN = {name: torch.from_numpy(FILE[name]) for name in FILE.files if name != "meta"}


def built(size, **options):
    return LowRank(backbones.load("pixels"), ["input"], size, **options)


def close(found, name, atol=1e-6):
    torch.testing.assert_close(found, GOLDEN[name], rtol=0, atol=atol)


def test_steps_are_those_of_the_arrays():
    """To the solution, which is also that of a program of another kind, in as many steps."""
    first = decomposed(GOLDEN["D"], 1.0, most=1)
    close(first.low_rank, "first_A")
    close(first.sparse, "first_E")
    found = decomposed(GOLDEN["D"], 1.0)
    assert found.steps == int(GOLDEN["iterations"])
    close(found.low_rank, "A")
    close(found.sparse, "E")
    close(found.low_rank, "L0", 1e-3)
    close(found.sparse, "S0", 1e-3)
    close(found.low_rank, "exact_low_rank", 1e-4)
    close(decomposed(GOLDEN["D"], 1.0, growth=1.5).low_rank, "rho15_A")
    objective = torch.linalg.svdvals(found.low_rank).sum() + GOLDEN["lam"] * found.sparse.abs().sum()
    assert objective.item() == pytest.approx(GOLDEN["exact_objective"].item(), rel=1e-6)


def test_an_image_of_a_texture():
    found = decomposed(GOLDEN["image"], 1.0)
    close(found.low_rank, "image_A")
    close(found.sparse, "image_E")
    assert found.steps == int(GOLDEN["image_iterations"])


@pytest.mark.parametrize("shape", [(40, 60), (60, 40)])
def test_planted_parts_are_found(shape):
    """Their sum is the matrix, the rank is what it was, and what was added is found where it was."""
    rng = np.random.default_rng(0)
    planted = rng.normal(size=(shape[0], 2)) @ rng.normal(size=(2, shape[1]))
    spoiled = np.where(rng.random(shape) < 0.05, rng.choice([-3.0, 3.0], shape), 0)
    low_rank, sparse, _ = decomposed(torch.from_numpy(planted + spoiled), 1.0)
    np.testing.assert_allclose(low_rank + sparse, planted + spoiled, atol=1e-5)
    assert torch.linalg.matrix_rank(low_rank, rtol=1e-4) == 2
    np.testing.assert_allclose(sparse, spoiled, atol=1e-3)


def test_weight_says_how_much_is_added():
    light, heavy = (decomposed(GOLDEN["image"], weight).sparse.abs() for weight in (0.5, 2.0))
    assert (light > 1e-6).sum() > 2 * (heavy > 1e-6).sum()


def test_directions_are_singular_vectors():
    images = torch.rand(7, 60, generator=torch.Generator().manual_seed(0))
    found, left = directions(images, 3)
    _, sizes, expected = np.linalg.svd(images.numpy(), full_matrices=False)
    np.testing.assert_allclose(abs(found.numpy() @ expected[:3].T), np.eye(3), atol=1e-4)
    assert left == pytest.approx((sizes[3:] ** 2).sum() / (sizes**2).sum(), rel=1e-3)
    again, none = directions(images[[0, 0, 1, 1, 1]], 4)
    assert len(again) == 2 and none < 1e-9


def test_least_absolute_fit_is_that_of_a_linear_program():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(80, 3)))[0]
    images = basis @ rng.normal(size=(3, 2)) * 5 + 0.05 * rng.normal(size=(80, 2))
    images[:12] += 2.0  # which least squares would share out
    found = added(torch.from_numpy(images.T).float(), torch.from_numpy(basis.T).float()).double().numpy()
    for own, image in zip(found, images.T, strict=True):
        ones, eye = np.ones(80), np.eye(80)
        exact = linprog(
            np.concatenate([np.zeros(3), ones]),
            A_ub=np.block([[basis, -eye], [-basis, -eye]]),
            b_ub=np.concatenate([image, -image]),
            bounds=[(None, None)] * 3 + [(0, None)] * 80,
        )
        assert abs(own).sum() == pytest.approx(exact.fun, rel=1e-3)
        np.testing.assert_allclose(own, image - basis @ exact.x[:3], atol=0.02)


def test_a_spot_on_a_texture_without_training_images():
    row, column = GOLDEN["image_spot"].tolist()
    detector = built((48, 40), of="image", sigma=0.5)
    assert detector.passes == 0 and "decomposes" in detector.not_exported
    maps = detector.score(GOLDEN["image"].float().unsqueeze(0)).maps[0]
    assert maps.argmax() in [r * 40 + c for r in range(row, row + 4) for c in range(column, column + 3)]
    smaller = built((48, 40), of="image", side=24).score(GOLDEN["image"].float().unsqueeze(0)).maps[0]
    place = divmod(int(smaller.argmax()), 40)
    assert abs(place[0] - row - 1.5) < 3 and abs(place[1] - column - 1) < 3


def test_a_spot_that_normal_images_never_have():
    """They are mixtures of three; a mixture that was not seen is normal, and a spot is not."""
    generator = torch.Generator().manual_seed(0)
    parts = torch.rand(3, 20, 24, generator=generator)
    mixed = torch.einsum("nk,khw->nhw", torch.rand(12, 3, generator=generator), parts)
    detector = built((20, 24), rank=5, sigma=0.5)
    detector.fit_embeddings(mixed[:10].split(4))
    assert detector.passes == 1 and not detector.not_exported
    spoiled = mixed[10:].clone()
    spoiled[1, 5:8, 9:12] += 0.5
    scores, maps = detector.score(spoiled)
    assert scores[0] < 0.02 * scores[1]
    assert maps[1].argmax() == 6 * 24 + 10


def test_no_direction_of_black_images():
    detector = built((8, 8), rank=2)
    detector.fit_embeddings([torch.zeros(3, 8, 8)])
    assert detector.score(torch.full((1, 8, 8), 0.5)).scores.item() == pytest.approx(0.5, abs=1e-3)
