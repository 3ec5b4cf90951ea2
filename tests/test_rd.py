"""Reverse distillation: its equations against plain loops, its student, and real cells."""

import json
import math
from dataclasses import replace

import numpy as np
import plain
import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL_CFA, SMALL_DATA, SMALL_NET, SMALL_RD, make_mvtec
from fake_cuda import CUDA, fake_cuda
from scipy.ndimage import gaussian_filter

import backbones
import main
from backbones import LayerInfo
from detection import Normal
from errors import UsageError
from methods import load, rd
from methods.rd import ReverseDistillation
from methods.student import Block, Student


def small(layers=("layer1", "layer2"), **options):
    backbone = backbones.load("resnet18", "random")
    return ReverseDistillation(backbone, list(layers), (32, 32), **{"blocks": 1, "epochs": 2, **options})


def infos(*layers):
    return [LayerInfo(f"layer{i}", channels, 0, grid) for i, (channels, grid) in enumerate(layers, start=1)]


def student(layers, blocks, relu="exit"):
    return Student(infos(*layers), blocks, relu)


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


@pytest.fixture
def maps():
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 4, 4), (2, 5, 2, 3)]
    return [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(2)]


def test_the_loss_equals_the_equation(maps):
    teacher, student = maps
    expected = sum(
        1 - cosine(own[i].flatten().tolist(), other[i].flatten().tolist())
        for own, other in zip(teacher, student, strict=True)
        for i in range(2)
    )
    assert rd.distillation_loss(teacher, student).item() == pytest.approx(expected / 2, rel=1e-5)


def test_the_map_equals_the_equations(maps):
    """Every pixel looks between the cells around it, the corner pixels at the corner cells; then scipy's Gaussian."""
    teacher, student = maps
    height, width = 10, 12
    found = rd.difference_maps(teacher, student, (height, width))
    for i in range(2):
        total = torch.zeros(height, width)
        for own, other in zip(teacher, student, strict=True):
            rows, columns = own.shape[2:]
            cells = [
                [1 - cosine(own[i, :, y, x].tolist(), other[i, :, y, x].tolist()) for x in range(columns)]
                for y in range(rows)
            ]
            for y in range(height):
                for x in range(width):
                    v, u = y * (rows - 1) / (height - 1), x * (columns - 1) / (width - 1)
                    top, left = min(int(v), rows - 2), min(int(u), columns - 2)
                    for dy, weight_y in ((0, top + 1 - v), (1, v - top)):
                        for dx, weight_x in ((0, left + 1 - u), (1, u - left)):
                            total[y, x] += weight_y * weight_x * cells[top + dy][left + dx]
        expected = torch.from_numpy(gaussian_filter(total.numpy(), 4, mode="reflect"))
        torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=1e-5)


def test_maps_are_those_of_anomalib():
    """Where it is installed. Its Gaussian leaves the edge row out of the mirrored border, scipy's does not."""
    module = pytest.importorskip("anomalib.models.image.reverse_distillation.anomaly_map")
    detector = small(epochs=1)
    with torch.no_grad():
        teacher = rd.teacher_maps(detector.embed(torch.randn(3, 3, 32, 32)))
        student = detector.student(teacher)
    generator = module.AnomalyMapGenerator((128, 128), sigma=4, mode=module.AnomalyMapGenerationMode.ADD)
    theirs, ours = generator(student, teacher).squeeze(1), rd.difference_maps(teacher, student, (128, 128))
    inside = (slice(None), slice(17, -17), slice(17, -17))
    torch.testing.assert_close(ours[inside], theirs[inside], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "layers",
    [
        [(6, (16, 16)), (8, (8, 8)), (10, (4, 4))],
        [(6, (83, 42)), (8, (42, 21)), (10, (21, 11))],  # halves rounded up
        [(6, (35, 35)), (8, (17, 17))],  # and down
        [(6, (16, 16)), (10, (4, 4))],  # a layer left out
        [(6, (7, 7)), (6, (7, 7))],  # transformers
        [(6, (2, 3))],
    ],
)
def test_the_student_mirrors_any_teacher(layers):
    own = student(layers, 2)
    teacher = [torch.randn(2, channels, *grid) for channels, grid in layers]
    assert [one.shape for one in own(teacher)] == [one.shape for one in teacher]
    assert own.bottleneck(teacher).shape[1] == 2 * layers[-1][0]


@pytest.mark.parametrize("relu", ["exit", "entrance"])
@pytest.mark.parametrize("signs", [(True, True), (False, True), (True, False), (False, False)])
def test_the_students_maps_have_the_signs_of_the_teachers(signs, relu):
    """But with the ReLU at the entrance, which always leaves both; the embedding is behind a ReLU as the authors'."""
    layers = [replace(one, signed=own) for one, own in zip(infos((6, (8, 8)), (8, (4, 4))), signs, strict=True)]
    own, teacher = Student(layers, 2, relu), [torch.randn(2, 6, 8, 8), torch.randn(2, 8, 4, 4)]
    found = tuple(bool((one < 0).any()) for one in own(teacher))
    assert found == (signs if relu == "exit" else (True, True))
    assert bool((own.bottleneck(teacher) < 0).any()) == (relu == "entrance")


@pytest.mark.parametrize("relu", ["exit", "entrance"])
def test_what_is_below_0_reaches_the_embedding(relu):
    """Of the coarsest map, which goes into the bottleneck's blocks as it is."""
    own = student([(6, (8, 8)), (8, (4, 4))], 1, relu).eval()
    fine, coarse = torch.randn(1, 6, 8, 8), -torch.rand(1, 8, 4, 4)
    same = torch.equal(own.bottleneck([fine, coarse]), own.bottleneck([fine, 2 * coarse]))
    assert same == (relu == "entrance")


@pytest.mark.parametrize(
    ("name", "layers", "signed"),
    [
        ("resnet18", ["layer1", "bn1", "act1", "layer1.0.conv1"], [False, True, False, True]),
        ("wideresnet50", ["layer1", "layer3"], [False, False]),
        ("efficientnet_lite0", ["blocks.2", "blocks.4"], [True, True]),
    ],
)
def test_layers_know_whether_a_relu_ends_them(name, layers, signed):
    assert [info.signed for info in backbones.load(name, "random").layer_info(layers, (64, 64))] == signed


def test_a_model_older_than_the_order_of_blocks_is_read_as_it_was(tmp_path):
    """Its description does not say where the ReLU is, which was at the entrance."""
    root = make_mvtec(tmp_path / "mvtec", ["bolt"], size=32, train=2, test=1)
    words = ["--precision", "fp32", *SMALL_RD, "--relu", "entrance", "dataset", *SMALL_DATA, "mvtec", str(root)]
    main.main(["--results_path", str(tmp_path / "results"), *words], standalone_mode=False)
    (path,) = tmp_path.rglob("model.json")
    images = torch.randn(2, 3, 32, 32)
    expected = load(path.parent).predict(images).scores
    description = json.loads(path.read_text())
    del description["options"]["relu"]
    path.write_text(json.dumps(description))
    older = load(path.parent)
    assert older.detector.options.relu == "entrance"
    assert torch.equal(older.predict(images).scores, expected)
    description["options"]["relu"] = "exit"
    path.write_text(json.dumps(description))
    assert not torch.equal(load(path.parent).predict(images).scores, expected)


@pytest.mark.parametrize("relu", ["exit", "entrance"])
@pytest.mark.parametrize(("outputs", "up", "down"), [(6, 1, 1), (10, 1, 1), (6, 1, 2), (6, 2, 1)])
def test_a_block_is_a_residual_block(outputs, up, down, relu):
    """Its convolutions written one behind the other; the shortcut has one of its own where it cannot be the input."""
    block, x = Block(6, outputs, up, down), torch.randn(2, 6, 8, 8)
    block.at_entrance, block.at_exit = relu == "entrance", relu == "exit"
    first, second, third, *shortcut = [weight for weight in block.state_dict().values() if weight.ndim == 4]

    def norm(h):
        return (h - h.mean((0, 2, 3), keepdim=True)) / (h.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()

    def resample(h, weight, padding):
        return F.conv_transpose2d(h, weight, stride=up) if up > 1 else F.conv2d(h, weight, None, down, padding)

    r = x.clamp(min=0) if relu == "entrance" else x
    h = norm(F.conv2d(r, first)).clamp(min=0)
    h = norm(F.conv2d(norm(resample(h, second, 1)).clamp(min=0), third))
    expected = h + (norm(resample(r, *shortcut, 0)) if shortcut else r)
    expected = expected.clamp(min=0) if relu == "exit" else expected
    assert len(shortcut) == (outputs != 6 or up * down > 1)
    assert len(first) == 64 and len(Block(6, 200).main[0].weight) == 100  # half the channels, not too few
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-4)


def test_convolutions_start_normal_by_their_fan_out():
    """He et al.: Delving deep into rectifiers, 2015; of a transposed convolution the fan out is that of its input."""
    torch.manual_seed(0)
    kernels = [
        weight for weight in student([(24, (16, 16)), (40, (8, 8))], 2).state_dict().values() if weight.ndim == 4
    ]
    units = [(weight * (len(weight) * weight[0, 0].numel() / 2) ** 0.5).flatten() for weight in kernels]
    for unit in units:
        assert unit.std().item() == pytest.approx(1, abs=5 / len(unit) ** 0.5)
    inside = (torch.cat(units).abs() < 1).float().mean().item()
    assert inside == pytest.approx(math.erf(0.5**0.5), abs=0.01)  # of uniform weights it would be 0.58


def test_the_student_sees_nothing_but_the_embedding():
    """A change of the teacher's maps that leaves the embedding as it is leaves the student's maps."""
    own = student([(6, (8, 8)), (8, (4, 4))], 1).eval()
    first, second = ([torch.randn(1, 6, 8, 8), torch.randn(1, 8, 4, 4)] for _ in range(2))
    embedding = own.bottleneck(first)
    own.bottleneck.forward = lambda _: embedding
    for a, b in zip(own(first), own(second), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([(6, (4, 4)), (8, (8, 8))], "layers must go from fine to coarse: layer2 is finer than layer1 before it"),
        ([(6, (4, 4)), (8, (2, 2))], "layer layer2 has 2 x 2 cells, too few"),
    ],
)
def test_layers_that_cannot_be_mirrored_are_refused(layers, words):
    with pytest.raises(UsageError, match=words):
        student(layers, 1)


def test_features_are_the_teachers_maps():
    detector, images = small(), torch.randn(3, 3, 32, 32)
    expected = detector.backbone(images, ["layer1", "layer2"])
    features = detector.embed(images)
    assert [own.shape for own in features] == [(3, 8, 8, 64), (3, 4, 4, 128)]
    for found, own in zip(rd.teacher_maps(features), expected, strict=True):
        assert torch.equal(found, own)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_training_teaches_the_student(precision):
    detector = small(epochs=30, precision=precision)
    images, losses = torch.randn(4, 3, 32, 32), []
    detector.fit(images.split(2), lambda stats: losses.append(stats.loss))
    assert losses[-1] < losses[0] / 2
    assert detector.passes == 30
    scores, maps = detector.predict(images)
    assert maps.dtype == torch.float32 and maps.shape == (4, 32, 32)
    assert torch.equal(scores, maps.amax((1, 2)))


def test_a_step_is_adams_with_the_betas_of_the_authors():
    """On all that is learned, down known gradients; the teacher stays."""
    detector, drawn = small(lr=0.01, seed=3), []
    learned = dict(detector.student.named_parameters())
    before = {name: weight.detach().clone() for name, weight in detector.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    gradients = [{name: torch.randn(w.shape, generator=generator) for name, w in learned.items()} for _ in range(4)]

    def loss(batch, generator):
        drawn.append(torch.rand(1, generator=generator).item())
        return sum((learned[name] * own).sum() for name, own in batch.items())

    detector.loss = loss
    assert len(list(rd._Trainer(detector).steps(gradients))) == 4
    assert drawn == torch.rand(4, generator=torch.Generator().manual_seed(3)).tolist()
    for name, weight in detector.named_parameters():
        own = name.removeprefix("student.")
        expected = before[name].numpy()
        if own != name:
            expected = plain.adam(before[name], [one[own] for one in gradients], 0.01, (0.5, 0.999))
        np.testing.assert_allclose(weight.detach(), expected, rtol=0, atol=1e-5)


def test_channels_come_last_in_the_student():
    """On a GPU; a CPU's order of channels decides its last digits."""
    maps = torch.zeros(2, 8, 8, 64), torch.zeros(2, 4, 4, 128)
    with fake_cuda():
        on_gpu = small().to(CUDA)
        on_gpu.training_on(Normal([tuple(own.to(CUDA) for own in maps)]))
    on_cpu = small()
    on_cpu.training_on(Normal([maps]))
    for own, is_last in ((on_gpu, True), (on_cpu, False)):
        kernels = [weight for weight in own.student.parameters() if weight.ndim == 4 and weight.shape[2] > 1]
        assert {one.is_contiguous(memory_format=torch.channels_last) for one in kernels} == {is_last}


@pytest.mark.parametrize(
    ("detector", "given", "expected"),
    [
        (SMALL_RD, [], (16, "square", 256)),
        (SMALL_RD, ["--imagesize", "32", "--batch_size", "4"], (4, "square", 32)),
        (SMALL_CFA, [], (4, "aspect", 224)),
        (SMALL_NET, [], (2, "aspect", 224)),
    ],
)
def test_the_papers_data_options_are_its_defaults(monkeypatch, detector, given, expected):
    """Of dataset, behind rd and cfa; flags win."""
    seen = []
    monkeypatch.setattr("experiment.run.run", lambda config, detectors: seen.extend(*detectors.values()))
    main.main([*detector, "dataset", *given, "mvtec", "x"], standalone_mode=False)
    ((_, _, (data,)),) = seen
    assert (data.batch_size, data.resize_mode, data.imagesize) == expected
