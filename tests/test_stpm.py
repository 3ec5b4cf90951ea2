"""STPM by the golden arrays: loss, steps and maps; its student, and the epoch that it is kept of."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import backbones
from backbones.features import types_of
from detection import Normal
from errors import UsageError
from methods.stpm import STPM, difference, product

GOLDEN = np.load(Path(__file__).parent / "golden" / "stpm.npz")
LEVELS = (1, 2, 3)


def golden(name):
    return torch.from_numpy(GOLDEN[name]).float()


def small(layers=("layer1", "layer2"), side=32, **options):
    return STPM(backbones.load("resnet18", "random"), list(layers), (side, side), **{"epochs": 2, **options})


@pytest.fixture
def maps():
    return [[golden(f"{own}{level}") for level in LEVELS] for own in ("teacher", "student")]


class Given(nn.Module):
    """A student whose maps are what is learned, whatever it sees."""

    def __init__(self, maps):
        super().__init__()
        self.maps = nn.ParameterList(maps)

    def forward(self, images, layers):
        return list(self.maps)


def test_two_steps_are_those_of_the_authors(maps):
    teacher, student = maps
    detector = small(["layer1"])
    detector.student = Given(student)
    batch = torch.zeros(3, 3, 8, 8), *(own.permute(0, 2, 3, 1) for own in teacher)
    trainer = detector.trainer(Normal([batch]))
    losses = [stats.loss.item() for stats in trainer.steps([batch] * 2)]
    trainer.end_pass()
    assert losses == pytest.approx(GOLDEN["reference_losses_of_2_steps"], rel=1e-5)
    for level, own in zip(LEVELS, detector.student.maps, strict=True):
        torch.testing.assert_close(own.detach(), golden(f"student{level}_after_2_steps"), rtol=1e-5, atol=1e-5)


def test_maps_are_those_of_the_authors(maps):
    """Who bring all levels to 64 x 64 cells, the finest of theirs."""
    finest = torch.ones(3, 1, 64, 64)
    found = product([finest, *map(difference, *maps)])
    torch.testing.assert_close(found, golden("reference_map_64"), rtol=1e-5, atol=1e-6)
    large = F.interpolate(found.unsqueeze(1), size=256, mode="bilinear")[:, 0]
    torch.testing.assert_close(large[0], golden("reference_map_256_first"), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(large.amax((1, 2)), golden("reference_image_scores"), rtol=1e-4, atol=1e-6)


def test_anomalib_halves_differences_and_sums_over_the_batch(maps):
    differences = list(map(difference, *maps))
    losses = [3 / 2 * own.mean().item() for own in differences]
    assert losses == pytest.approx(GOLDEN["anomalib_layer_losses"], rel=1e-5)
    size = GOLDEN["anomalib_map"].shape[1:]
    upsampled = product([torch.ones(3, 1, *size), *(own / 2 for own in differences)])
    torch.testing.assert_close(upsampled, golden("anomalib_map"), rtol=1e-4, atol=1e-6)


def test_a_map_is_the_product_at_the_images_size():
    detector, images = small().eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        embeddings = detector.embed(images)
        scores, found = detector.score(embeddings)
        first, second = detector.differences(detector.student, embeddings)
    expected = F.interpolate(first * F.interpolate(second, size=8, mode="bilinear"), size=32, mode="bilinear")[:, 0]
    torch.testing.assert_close(found, expected)
    assert torch.equal(scores, found.amax((1, 2)))


def test_what_is_kept_of_an_image():
    """Its pixels in 8 bits, as files have them, and the teacher's maps; in matched light the pixels as they are."""
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    detector = small(precision=torch.bfloat16)
    kept, *maps = found = detector.embed_read(pixels)
    assert torch.equal(kept, pixels)
    assert types_of(found) == [torch.uint8, torch.bfloat16, torch.bfloat16]
    assert [own.shape[1:] for own in maps] == [(8, 8, 64), (4, 4, 128)]
    detector = small(match_light="gain")
    detector.light.learn([torch.randn(2, 3, 32, 32)])
    assert types_of(detector.embed_read(pixels)) == [torch.float32] * 3


def test_the_student_is_a_network_of_its_own():
    """Of the teacher's kind, cut behind the last layer, with other random weights that learn, all but the teacher's."""
    detector = small()
    teacher = detector.backbone.build(detector.layers, detector.image_size)
    student = detector.student.network
    assert {name: own.shape for name, own in student.state_dict().items()} == {
        name: own.shape for name, own in teacher.state_dict().items()
    }
    before = copy.deepcopy(teacher.state_dict())
    assert not torch.equal(before["conv1.weight"], student.conv1.weight)
    assert all(own.requires_grad for own in student.parameters())
    fresh = copy.deepcopy(student.state_dict())
    detector.fit([torch.randn(4, 3, 32, 32)])
    assert not any(torch.equal(own, fresh[name]) for name, own in student.named_parameters())
    assert all(torch.equal(own, before[name]) for name, own in teacher.state_dict().items())
    assert set(detector.state_dict()) == {f"student.network.{name}" for name in fresh}


def test_the_state_holds_what_a_student_calls_its_backbone():
    """As hybrid transformers do."""
    detector = small()
    detector.student.network.backbone = nn.Linear(2, 2)
    assert "student.network.backbone.weight" in detector.state_dict()


def test_the_epoch_of_the_lowest_held_out_loss_is_kept(monkeypatch):
    detector, images = small(epochs=4), torch.randn(2, 3, 32, 32)
    batch = detector.embed(images)
    training = detector.training_on(Normal([batch], [batch]))
    losses = iter([3.0, 1.0, 2.0, 0.5])
    monkeypatch.setattr(training.trainer, "_held_out_loss", lambda: next(losses))
    kept, watched = [], []
    for stats in training:
        trained, own = (one.network.conv1.weight for one in (training.trainer.trained, detector.student))
        kept.append(torch.equal(trained, own))
        watched.append(stats.details["held_out_loss"])
    assert kept == [True, True, False, True]
    assert watched == [3.0, 1.0, 2.0, 0.5]


def test_the_held_out_loss_is_a_mean_over_images():
    """By the statistics that the student has learned."""
    detector = small()
    batches = [detector.embed(torch.randn(n, 3, 32, 32)) for n in (3, 1)]
    trainer = detector.trainer(Normal(batches, batches))
    expected = [detector.loss(trainer.trained.eval(), batch).item() for batch in batches]
    trainer.trained.train()
    assert trainer._held_out_loss() == pytest.approx((3 * expected[0] + expected[1]) / 4, rel=1e-5)


def test_a_layer_of_one_cell_is_refused():
    with pytest.raises(UsageError, match="layer layer4 has a single cell"):
        small(["layer4"])


def test_training_is_that_of_anomalib(monkeypatch):
    """Where it is installed, and reads the paper alike: its loss over the mean in place of the sum, not halved.

    In float64, which nothing here may leave: float32 rounds what ten steps at a rate of 0.4 carry on.
    """
    pytest.importorskip("anomalib")
    from anomalib.models.image.stfpm.loss import STFPMLoss
    from anomalib.models.image.stfpm.torch_model import STFPMModel, TimmFeatureExtractor

    monkeypatch.setattr(
        "anomalib.models.image.stfpm.torch_model.TimmFeatureExtractor",
        lambda pre_trained, **options: TimmFeatureExtractor(pre_trained=False, **options),
    )
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    detector, images = small(), torch.randn(10, 4, 3, 32, 32, dtype=torch.float64).unbind()
    theirs = STFPMModel(detector.layers, "resnet18")
    for network, own in ((theirs.teacher_model, detector.backbone), (theirs.student_model, detector.student)):
        state = own.build(detector.layers, detector.image_size).state_dict()
        network.feature_extractor.load_state_dict(state, strict=False)
    detector.double()
    theirs.double().train()
    theirs.teacher_model.eval()
    optimizer = torch.optim.SGD(theirs.student_model.parameters(), lr=0.4, momentum=0.9, weight_decay=1e-4)
    trainer = detector.trainer(Normal([]))
    # pixels as they are: random ones are none of 8 bits
    with torch.no_grad():
        batches = [(own, *detector.features(own)[1:]) for own in images]
    losses = [stats.loss.item() for stats in trainer.steps(batches)]
    for own, loss in zip(images, losses, strict=True):
        found = 2 / len(own) * STFPMLoss()(*theirs(own))
        assert found.item() == pytest.approx(loss, rel=1e-9)
        optimizer.zero_grad()
        found.backward()
        optimizer.step()
    state = trainer.trained.network.state_dict()
    for name, own in theirs.student_model.feature_extractor.state_dict().items():
        if name in state:
            torch.testing.assert_close(own, state[name], rtol=1e-9, atol=1e-9)
