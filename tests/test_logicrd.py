"""LogicRD: what each of its modules does, the statistics of its scores, and scenes with missing parts."""

import itertools
import math

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL_DATA, SMALL_LOGICRD
from sklearn.covariance import LedoitWolf
from test_resume import folder

import backbones
from detection import Normal
from methods.logicrd import LogicRD, mahalanobis, shrunk
from methods.rd import ReverseDistillation, distillation_loss, teacher_maps
from methods.semantics import CompensationPathway, GlobalSemantics, _gathered, _rolled, area_means, corrupted

OFF = ["no_gse", "no_fcp", "no_nii", "no_mahalanobis"]
SHAPES = [(8, 8, 64), (4, 4, 128)]


def small(kind=LogicRD, **options):
    backbone = backbones.load("resnet18", "random")
    return kind(backbone, ["layer1", "layer2"], (32, 32), **{"blocks": 1, "epochs": 2, **options})


def maps(images=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(images, sum(map(math.prod, SHAPES)), generator=generator)
    own = values.split(list(map(math.prod, SHAPES)), dim=1)
    return tuple(one.unflatten(1, shape) for one, shape in zip(own, SHAPES, strict=True))


def batches(embeddings, size):
    return list(zip(*(own.split(size) for own in embeddings), strict=True))


def test_without_its_modules_it_is_reverse_distillation():
    plain, off = small(ReverseDistillation), small(**dict.fromkeys(OFF, True))
    for detector in (plain, off):
        detector.fit_embeddings(batches(maps(), 3))
    assert plain.state_dict().keys() == off.state_dict().keys()
    expected, found = plain.score(maps()), off.score(maps())
    assert torch.equal(found.maps, expected.maps)
    assert torch.equal(found.scores, expected.scores)
    assert off.passes == 2 and small().passes == 4


@pytest.mark.parametrize("flag", OFF)
def test_every_module_can_be_left_out_and_has_an_effect(flag):
    scores = []
    for options in ({}, {flag: True}):
        detector = small(**options)
        detector.fit_embeddings(batches(maps(), 3))
        scores.append(detector.score(maps()).scores)
    assert not torch.allclose(*scores)


def test_semantics_know_the_whole_image():
    """A change in one corner of one level reaches every place of the other level; without attention it would not."""
    infos = backbones.load("resnet18", "random").layer_info(["layer1", "layer2"], (64, 64))
    module = GlobalSemantics(infos, (4, 4)).eval()
    maps = [torch.randn(1, 64, 16, 16), torch.randn(1, 128, 8, 8)]
    changed = [maps[0].clone(), maps[1]]
    changed[0][..., :2, :2] += 5
    (_, before), (_, after) = (module(one)[0] for one in (maps, changed))
    assert before.shape == (1, 128, 4, 4)
    assert ((before - after).abs().amax(1) > 0).all()
    assert module(maps)[1].shape == (1, module.dimensions)


def test_semantics_equal_their_description():
    """Standardised means of areas become tokens of a place and a level; what two layers make of them is read off."""
    infos = backbones.load("resnet18", "random").layer_info(["layer1", "layer2"], (64, 64))
    module = GlobalSemantics(infos, (4, 4)).eval()
    maps = [torch.randn(2, 64, 16, 16), torch.randn(2, 128, 8, 8)]
    for norm in module.norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    tokens = torch.empty(2, 2, 16, 64)
    for level, (one, norm, linear) in enumerate(zip(maps, module.norms, module.to_tokens, strict=True)):
        side = one.shape[-1] // 4
        for y, x in itertools.product(range(4), range(4)):
            area = one[:, :, y * side : (y + 1) * side, x * side : (x + 1) * side].mean((2, 3))
            unit = (area - norm.running_mean) / (norm.running_var + 1e-5).sqrt()
            tokens[:, level, 4 * y + x] = linear(unit) + module.places[level, 4 * y + x]
    assert len(module.encoder.layers) == 2
    fused = module.encoder(tokens.flatten(1, 2)).view(2, 2, 4, 4, 64)
    levels, vectors = module(maps)
    for level, found in enumerate(levels):
        weight, shift = module.to_maps[level].weight[..., 0, 0], module.to_maps[level].bias
        torch.testing.assert_close(found.movedim(1, 3), fused[:, level] @ weight.T + shift, rtol=1e-3, atol=1e-4)
    quarters = [fused[:, :, y : y + 2, x : x + 2].mean((2, 3)).flatten(1) for y, x in ((0, 0), (0, 2), (2, 0), (2, 2))]
    torch.testing.assert_close(vectors, torch.stack(quarters, dim=2).flatten(1), rtol=1e-3, atol=1e-4)


def test_the_student_decodes_semantics_and_takes_in_detail():
    """(6) step by step, with detail read off other maps than the teacher's."""
    detector = small().eval()
    teacher, details = (teacher_maps(maps(2, seed)) for seed in (0, 1))
    levels, _ = detector.semantics(teacher)
    sources = [
        one + F.interpolate(own, one.shape[-2:], mode="bilinear") for one, own in zip(teacher, levels, strict=True)
    ]
    coarse = detector.student.decoder.stages[1](detector.student.bottleneck(sources))
    coarse = detector.pathways[1](details[1], coarse)
    fine = detector.pathways[0](details[0], detector.student.decoder.stages[0](coarse))
    for found, expected in zip(detector._student_maps(teacher, details)[0], (fine, coarse), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_detail_is_what_the_means_have_lost():
    """A map without any brings nothing to the student but what no map brings."""
    pathway, student = CompensationPathway(12, (4, 4), gated=False).eval(), torch.zeros(2, 12, 16, 16)
    nothing = pathway(torch.zeros(2, 12, 16, 16), student)
    flat = torch.randn(2, 12, 1, 1).expand(2, 12, 16, 16)
    torch.testing.assert_close(pathway(flat, student), nothing)
    assert not torch.allclose(pathway(torch.randn(2, 12, 16, 16), student), nothing)


def test_a_closed_gate_leaves_the_student_as_it_is():
    pathway = CompensationPathway(12, (4, 4), gated=True).eval()
    teacher, student = torch.randn(2, 12, 16, 16), torch.randn(2, 12, 16, 16)
    with torch.no_grad():
        pathway.bias.fill_(-100)
        torch.testing.assert_close(pathway(teacher, student), student)
        pathway.bias.fill_(100)
        ungated = CompensationPathway(12, (4, 4), gated=False).eval()
        ungated.load_state_dict(pathway.state_dict(), strict=False)
        torch.testing.assert_close(pathway(teacher, student), ungated(teacher, student))


def test_the_gate_opens_where_detail_is_what_the_student_expects():
    """sigmoid(a cos(detail, expected) + b) of every cell, against plain loops."""
    pathway = CompensationPathway(12, (4, 4), gated=True)
    detail, student = torch.randn(2, 8, 3, 4), torch.randn(2, 12, 3, 4)
    weight, shift = pathway.expect.weight[..., 0, 0], pathway.expect.bias
    with torch.no_grad():
        pathway.steepness.fill_(3.0)
        pathway.bias.fill_(-1.0)
        found = pathway.gate(detail, student)
        for b, y, x in itertools.product(range(2), range(3), range(4)):
            own, expected = detail[b, :, y, x], weight @ student[b, :, y, x] + shift
            likeness = (own @ expected / (own.norm() * expected.norm())).item()
            assert found[b, 0, y, x].item() == pytest.approx(1 / (1 + math.exp(1 - 3 * likeness)), rel=1e-4)
    assert CompensationPathway(12, (4, 4), gated=True).steepness > 0


def test_the_gate_learns_to_keep_foreign_detail_out():
    """Two kinds of images with textures of their own; the student knows the kind, detail of the other does not pass."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    pathway = CompensationPathway(12, (4, 4), gated=True)
    optimizer = torch.optim.Adam(pathway.parameters(), lr=0.01)
    kinds = torch.arange(8) % 2
    student = F.one_hot(kinds, 12).float()[:, :, None, None].expand(-1, -1, 16, 16)
    textures = torch.randn(2, 12, generator=generator)[kinds, :, None, None]

    def images():
        return textures * torch.randn(8, 1, 16, 16, generator=generator)

    for _ in range(150):
        teacher = images()
        (details,) = corrupted([teacher], (4, 4), generator)
        optimizer.zero_grad()
        (pathway(details, student) - teacher).square().mean().backward()
        optimizer.step()
    pathway.eval()
    opened = [pathway.gate(pathway.squeeze(own), student).mean() for own in (images(), images().roll(1, 0))]
    assert opened[1] < 0.8 * opened[0]


@pytest.mark.parametrize("flag", [None, "no_nii", "no_fcp"])
def test_the_gate_learns_on_corrupted_detail(flag):
    """The teacher's maps are what the student is to give; detail is read off corrupted ones where there is a gate."""
    detector, batch = small(**({flag: True} if flag else {})).train(), maps()
    teacher = teacher_maps(batch)
    with torch.no_grad():
        for pathway in detector.pathways:
            pathway.restore.weight.mul_(300)  # so that detail weighs
    losses = []
    for details in (teacher, corrupted(teacher, detector.grid, torch.Generator().manual_seed(3))):
        losses.append(distillation_loss(teacher, detector._student_maps(teacher, details)[0]).item())
    found = detector.loss(batch, torch.Generator().manual_seed(3)).item()
    assert found == pytest.approx(losses[0 if flag else 1], rel=1e-5)
    assert (losses[0] == pytest.approx(losses[1], rel=1e-4)) == (flag == "no_fcp")


def test_corruption_is_the_same_on_all_levels():
    """Cells come from elsewhere in whole areas, about as many as wanted, and the others stay."""
    places = torch.arange(8 * 64.0).view(8, 1, 8, 8)
    fine = places.repeat_interleave(2, 2).repeat_interleave(2, 3)
    found, coarse = corrupted([fine, places], (8, 8), torch.Generator().manual_seed(1))
    assert torch.equal(area_means(found, (8, 8)), coarse)
    assert (coarse != places).float().mean().item() == pytest.approx(0.2, abs=0.05)
    assert set(coarse.flatten().tolist()) <= set(places.flatten().tolist())


def test_a_gpu_moves_maps_without_the_host_to_the_same_places():
    maps, donors = torch.randn(5, 6, 7, 9), torch.tensor([3, 0, 4, 1, 2])
    for shifts in torch.tensor([[0.0, 0.0], [0.3, 0.99], [0.999999, 0.5]]):
        assert torch.equal(_gathered(maps, donors, shifts.double()), _rolled(maps, donors, shifts.double()))


def test_distances_are_mahalanobis_of_a_shrunk_covariance():
    vectors = torch.randn(20, 30, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 9, 30)
    estimate = LedoitWolf().fit(vectors.double().numpy())
    expected = torch.from_numpy(estimate.mahalanobis(vectors.double().numpy())).sqrt().float()
    torch.testing.assert_close(mahalanobis(vectors, *shrunk(vectors)), expected, rtol=1e-4, atol=1e-4)
    constant = torch.ones(5, 3)
    assert mahalanobis(constant, *shrunk(constant)).abs().max() < 1e-3  # a dimension that never moves


def test_scores_are_standardised_on_normal_images():
    """By distances that each image's own vector did not decide."""
    detector, batch = small(epochs=1), maps(40)
    detector.fit_embeddings(batches(batch, 10))
    branches = detector.score(batch).terms
    assert list(branches) == ["map_score", "semantic_score"]
    prediction = detector.score(batch)
    torch.testing.assert_close(prediction.scores, branches["map_score"] + branches["semantic_score"])
    assert branches["map_score"].mean().abs() < 1e-3
    assert branches["map_score"].std(unbiased=False).item() == pytest.approx(1, abs=1e-3)
    others = detector.score(maps(40, seed=1)).terms["semantic_score"]
    assert others.mean().abs() < 1.5  # what was not trained on is as far away as was expected
    assert branches["semantic_score"].mean() < others.mean()


def test_held_out_images_standardise_scores_and_nothing_else():
    """Mean and covariance are of the training images; (8) and thresholds of others that neither has seen."""
    train, held_out, new = maps(40), maps(40, seed=1), maps(80, seed=2)
    with_, without = small(epochs=1), small(epochs=1)
    list(with_.training_on(Normal(batches(train, 10), batches(held_out, 16))))
    list(without.training_on(Normal(batches(train, 10))))
    assert torch.equal(with_.mean, without.mean)
    assert torch.equal(with_.precision_matrix, without.precision_matrix)
    for term in with_.score(held_out).terms.values():
        assert term.mean().abs() < 1e-3
        assert term.std(unbiased=False).item() == pytest.approx(1, abs=1e-3)
    for name, term in with_.score(train).terms.items():
        assert term.mean() < -0.5, name  # what training has seen scores lower
    threshold = with_.score(held_out).scores.quantile(0.9)
    assert (with_.score(new).scores > threshold).float().mean() < 0.25
    assert (with_.score(new).scores > with_.score(train).scores.quantile(0.9)).float().mean() > 0.5


@pytest.mark.parametrize("held_out", [(), [maps(1, seed=1)]])
def test_one_held_out_image_has_no_standard_deviation(held_out):
    """Then the training images standardise, by covariances without them."""
    alone, found = small(epochs=1), small(epochs=1)
    list(alone.training_on(Normal(batches(maps(20), 5))))
    list(found.training_on(Normal(batches(maps(20), 5), held_out)))
    assert torch.equal(alone.normal_scores, found.normal_scores)


def test_a_tenth_is_held_out_behind_it(caught_tasks, mvtec):
    (task,) = caught_tasks([*SMALL_LOGICRD, "dataset", *SMALL_DATA, "-d", "bolt", "mvtec", mvtec])
    assert len(task.jobs[0].samples.train) == 3
    assert len(task.jobs[0].samples.validation) == 1


@pytest.mark.parametrize("bank", ["auto", "off"])
def test_predictions_hold_both_scores(run_main, tmp_path, mvtec, bank):
    done = run_main("--feature_bank", bank, *SMALL_LOGICRD, "dataset", *SMALL_DATA, "-d", "bolt", "mvtec", mvtec)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(folder(tmp_path) / "models/0/mvtec_bolt/predictions.csv")
    assert list(table.columns[-2:]) == ["map_score", "semantic_score"]
    assert (table["map_score"] + table["semantic_score"]).tolist() == pytest.approx(table["score"].tolist(), rel=1e-4)
