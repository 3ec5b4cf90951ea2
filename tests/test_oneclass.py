"""One-class machines against the arrays of other programs, and against the conditions of their problems."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.svm import OneClassSVM

import backbones
from errors import UsageError
from methods import oneclass
from methods.oneclass import (
    Machine,
    OneClass,
    hyperplane,
    landmarks,
    nystroem,
    sphere,
    squared_distances,
    standardisation,
    support_vectors,
    width_of,
)

FILE = np.load(Path(__file__).parent / "golden" / "one_class.npz")
GOLDEN = {name: torch.from_numpy(FILE[name]) for name in FILE.files if name != "meta"}
META = json.loads(str(FILE["meta"]))
NU, GAMMA, TRAIN, TEST = META["nu"], META["gamma"], GOLDEN["train"], GOLDEN["test"]


def decisions(machine, rows):
    """g (3) with the Gaussian kernel."""
    return (-GAMMA * squared_distances(rows, machine.centres)).exp() @ machine.weights - machine.offset


def small(**options):
    return OneClass(backbones.load("resnet18", "random"), ["layer1", "layer2"], (32, 32), **options)


def images(count, seed=0):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def test_support_vectors_are_scikit_learns():
    found = support_vectors(TRAIN, NU, GAMMA)
    assert torch.equal(found.centres, TRAIN[GOLDEN["support"].long()])
    torch.testing.assert_close(found.weights, GOLDEN["alpha"][GOLDEN["support"].long()], rtol=0, atol=1e-5)
    torch.testing.assert_close(found.offset, GOLDEN["rho"], rtol=0, atol=1e-5)
    torch.testing.assert_close(decisions(found, TEST), GOLDEN["decision"], rtol=0, atol=1e-5)


def test_svdd_with_the_same_kernel_is_the_same_machine():
    """Its duals, solved by another program: R^2 - d^2 = 2 g / (nu N)."""
    found = 2 * decisions(support_vectors(TRAIN, NU, GAMMA), TEST) / (NU * len(TRAIN))
    torch.testing.assert_close(found, GOLDEN["svdd_R2"] - GOLDEN["svdd_distance2"], rtol=0, atol=1e-6)


def test_the_sphere_is_that_of_another_program():
    found = sphere(TRAIN, NU)
    torch.testing.assert_close(found.centres[0], GOLDEN["svdd_linear_center"], rtol=0, atol=1e-5)
    torch.testing.assert_close(found.offset, GOLDEN["svdd_linear_R2"], rtol=0, atol=1e-5)
    squared = squared_distances(TEST, found.centres)[:, 0]
    torch.testing.assert_close(squared, GOLDEN["svdd_linear_distance2"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("count", "nu"), [(50, 0.17), (33, 0.5)])
def test_the_sphere_meets_its_dual(count, nu):
    """The primal objective (6) at its centre and radius is the dual's at its multipliers: both are optimal."""
    rows = torch.randn(count, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 3
    found = sphere(rows, nu)
    slack = (squared_distances(rows, found.centres)[:, 0] - found.offset).clamp(min=0)
    primal = found.offset + slack.sum() / (nu * count)
    chosen, alpha, _ = oneclass._solved(-squared_distances(rows, rows) / 2, nu)
    beta = alpha / (nu * count)
    own = rows[chosen]
    assert beta.sum().item() == pytest.approx(1) and beta.min() >= 0 and beta.max() <= 1 / (nu * count) + 1e-9
    dual = beta @ own.square().sum(dim=1) - beta @ (own @ own.T) @ beta
    assert primal.item() == pytest.approx(dual.item(), rel=1e-5)
    assert (slack > 1e-6).sum() <= nu * count


def test_the_hyperplane_is_that_of_a_linear_kernel():
    rows = TRAIN + 3
    theirs = OneClassSVM(kernel="linear", nu=NU, tol=1e-8).fit(rows.numpy())
    found = hyperplane(rows, NU)
    expected = torch.from_numpy(theirs.decision_function((TEST + 3).numpy()))
    torch.testing.assert_close((TEST + 3) @ found.centres[0] - found.offset, expected, rtol=0, atol=1e-4)


def test_landmarks_see_what_nystroem_sees():
    """Its decisions by kernels with landmarks alone, the golden arrays' weights folded; and a machine of them."""
    weights = GOLDEN["nystroem_normalization"].T @ GOLDEN["sgd_coef"]
    folded = Machine(GOLDEN["nystroem_components"], weights, GOLDEN["sgd_offset"][0])
    torch.testing.assert_close(decisions(folded, TEST), GOLDEN["sgd_decision"], rtol=0, atol=1e-5)
    found = nystroem(TRAIN, GOLDEN["nystroem_components"], NU, GAMMA, seed=0)
    torch.testing.assert_close(decisions(found, TEST), GOLDEN["sgd_decision"], rtol=0, atol=1e-5)
    exact = decisions(support_vectors(TRAIN, NU, GAMMA), TEST)
    ranks = [own.argsort().argsort().double() for own in (decisions(found, TEST), exact)]
    assert torch.corrcoef(torch.stack(ranks))[0, 1] > 0.9


def test_landmarks_and_the_width_of_the_kernel():
    rows = torch.cat([torch.randn(40, 3, dtype=torch.float64) * 0.01 + centre for centre in (0.0, 5.0, 9.0)])
    found = landmarks(rows, 3, seed=0)
    assert found[:, 0].sort().values.tolist() == pytest.approx([0, 5, 9], abs=0.02)
    assert torch.equal(landmarks(rows[:3], 3, seed=0), rows[:3])
    pairs = torch.tensor([[0.0], [1.0], [3.0]])  # squared distances 1, 4 and 9
    assert width_of(pairs).item() == pytest.approx(1 / 4)
    assert width_of(pairs[:1]).item() == width_of(pairs / 100).item() == pytest.approx(10)


def test_standardisation():
    rows = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 5.0, 0.0]) + 100
    weight, bias = standardisation(rows)
    found = rows * weight + bias
    torch.testing.assert_close(found[:, :2].std(dim=0, correction=0), torch.ones(2), rtol=1e-2, atol=0)
    assert found.mean(dim=0).abs().max() < 1e-2 and found.isfinite().all()


@pytest.mark.parametrize("machine", ["nystroem", "gaussian", "linear", "svdd"])
@pytest.mark.parametrize("whiten", [0.1, 0.0])
def test_at_most_about_nu_lie_outside(machine, whiten, monkeypatch):
    """Of the patches that a machine is learned of, the others of nu on its surface (Schoelkopf et al., proposition 4);
    what is far is farther outside, and blocks change nothing."""
    detector = small(machine=machine, nu=0.2, rows=150, landmarks=30, whiten=whiten)
    (stats,) = detector.training_on(oneclass.Normal([detector.embed(own) for own in images(6).split(2)]))
    assert 0.05 < stats.details["outside"] < 0.28
    own = detector.scaled(detector.patches(detector.embed(images(6)[:1])))
    towards = -own if machine == "linear" else own * 3
    near, far = detector.patch_scores(own), detector.patch_scores(towards)
    assert (far > near).float().mean() > 0.95
    before = detector.predict(images(2, seed=1))
    monkeypatch.setattr(oneclass, "BLOCK", 7)
    torch.testing.assert_close(detector.predict(images(2, seed=1)).maps, before.maps, rtol=1e-4, atol=1e-5)


def test_what_is_far_does_not_tie():
    """Where all kernels are nearly 0: scores of the exact machine still tell how far."""
    detector = small(machine="gaussian", rows=100)
    detector.fit(images(4).split(2))
    own = detector.scaled(detector.patches(detector.embed(images(1, seed=1))))
    scores = [detector.patch_scores(own * scale).mean().item() for scale in (1, 10, 30, 90)]
    assert scores == sorted(scores) and scores[3] > 5 * scores[2] > 0


def test_a_kernel_that_memory_has_no_room_for_is_said(monkeypatch):
    monkeypatch.setattr(oneclass, "free_on", lambda device: 2**30)
    small(rows=50_000).check()
    with pytest.raises(UsageError, match=r"--machine svdd of --rows 50000 takes 55.9 GiB, and 1.0 GiB are free: lower"):
        small(machine="svdd", rows=50_000).check()
