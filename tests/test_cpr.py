"""CPR: retrieval, loss and maps by the golden arrays, its networks, defects and options."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL_DATA, make_mvtec, small
from PIL import Image

import backbones
import main
from datasets import pixels_of
from detection import Normal
from detection.pasting import Defective
from errors import DataError, UsageError
from methods.cpr import CPR
from methods.foreground import clipped_range, foreground, foreground_map, ring_and_middle
from methods.local_branch import LocalBranch
from methods.pairs import Pairs, draw_pairs, pair_loss, read_at
from methods.retrieval import block_divergences, codes, divergences, histograms, local_distances, nearest_images

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
    np.testing.assert_array_equal(nearest_images(found, len(references))[0], ARRAYS[f"order_kl{side}"])


def test_the_local_branch():
    branch = LocalBranch(7, 192, 64, 10)
    weights = list(branch.parameters())
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


@pytest.fixture
def detector():
    """Of 40 pixels, with maps of 10 x 10 and 5 x 5 cells, as the golden arrays are."""
    extractor = backbones.load("resnet18", "random")
    options = {"codes": 4, "stem": 8, "width": 4, "local_dim": 6, "pairs": 20, "epochs": 2, "references": 2}
    return CPR(extractor, ["layer1", "layer2"], (40, 40), **options)


@pytest.mark.parametrize("kind", ["texture", "object"])
def test_maps_and_scores(detector, kind, monkeypatch):
    detector.options = replace(detector.options, kind=kind, score_pixels=META["T"])
    unit = {(own, i): F.normalize(golden(f"map_{own}_features{i}"), dim=1) for own in ("train", "test") for i in (0, 1)}
    monkeypatch.setattr(detector, "maps", lambda pixels: [pixels])
    monkeypatch.setattr(detector, "local_features", lambda maps: [unit["test", 0], unit["test", 1]])
    monkeypatch.setattr(detector, "histograms_of", lambda first: torch.zeros(3, 25, 5))
    monkeypatch.setattr(detector, "foreground_of", lambda first: golden("map_test_foreground"))
    order = torch.from_numpy(ARRAYS["map_retrieval_order"])
    monkeypatch.setattr("methods.cpr.nearest_images", lambda divergences, k: order[:, :k])
    detector.references_0, detector.references_1 = unit["train", 0], unit["train", 1]
    detector.foregrounds, detector.histograms = golden("map_train_foreground"), torch.zeros(4, 25, 5)
    found = detector(torch.zeros(3, 3, 40, 40))
    suffix = "_foreground" if kind == "object" else ""
    torch.testing.assert_close(found.maps, golden(f"map_final{suffix}"), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.scores, golden(f"map_scores{suffix}"), rtol=1e-4, atol=1e-4)


def test_places_outside_the_map_are_no_match():
    query = torch.zeros(1, 2, 3, 3)
    query[0, 0] = 1
    found = local_distances(query, iter([-query]), 3)
    torch.testing.assert_close(found, torch.full((1, 3, 3), 2.0))  # a cosine of 0 beside the map would give 1


def test_the_foreground_of_the_golden_arrays():
    """The cells that the authors' program draws are not known: close, not equal."""
    maps = ARRAYS["feb_features"]
    cells, (ring, middle) = maps.transpose(0, 2, 3, 1), ring_and_middle(32, 32)
    parts = cells.reshape(-1, 4), cells[:, ring].reshape(-1, 4), cells[:, middle].reshape(-1, 4)
    weight, bias = foreground_map(*parts, seed=66)
    found = foreground(torch.from_numpy(maps[:1]), weight, bias)[0]
    torch.testing.assert_close(found, golden("feb_foreground_of_first"), rtol=0, atol=0.02)
    low, high = clipped_range(ARRAYS["scaler_input"])
    assert [low, high] == pytest.approx(ARRAYS["scaler_min_max"])


def test_ring_and_middle():
    ring, middle = ring_and_middle(80, 10)
    assert ring.sum() == 80 * 10 - 74 * 8
    assert [own.tolist() for own in np.nonzero(middle[:, 5])[0][[0, -1]]] == [24, 55]
    assert np.nonzero(middle[40])[0].tolist() == [3, 4, 5, 6]


def test_places_are_read_as_by_grid_sample():
    maps = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    places = torch.rand(2, 50, 2, generator=torch.Generator().manual_seed(1)) * 2.2 - 1.1
    expected = F.grid_sample(maps, places.unsqueeze(1), align_corners=False)[:, :, 0].transpose(1, 2)
    torch.testing.assert_close(read_at(maps, places), expected, rtol=1e-5, atol=1e-6)


def test_pairs_are_where_they_should_be():
    defect, foreground = np.zeros((20, 30), bool), np.zeros((20, 30))
    defect[3:6, 4:9], foreground[2:10, 2:20] = True, 1
    pairs = draw_pairs(defect, foreground, 40, np.random.default_rng(0))

    def places(points):
        columns, rows = ((points + 1) / 2 * torch.tensor([29.0, 19.0])).round().int().T.numpy()
        return rows, columns

    same = places(pairs.same)
    assert (foreground[same] == 1).all() and not defect[same].any() and pairs.same_weight.all()
    assert pairs.defect_weight.sum() == defect.sum() == 15
    found = [own[:15] for own in places(pairs.defect)]
    assert defect[tuple(found)].all() and len({*zip(*found, strict=True)}) == 15
    first, second = places(pairs.distant), places(pairs.distant_reference)
    apart = np.hypot(first[0] - second[0], first[1] - second[1])
    np.testing.assert_array_equal(pairs.distant_weight.bool(), apart > 4 * 2**0.5)
    assert 0 < pairs.distant_weight.sum() < 40


def test_an_image_without_foreground_or_defect_has_no_pairs_and_a_texture_no_distant_ones():
    nowhere = np.zeros((8, 8))
    pairs = draw_pairs(nowhere > 0, nowhere, 10, np.random.default_rng(0))
    assert not pairs.same_weight.any() and not pairs.defect_weight.any()
    assert not draw_pairs(nowhere > 0, None, 10, np.random.default_rng(0)).distant_weight.any()


def test_references_are_others_that_are_alike(detector, monkeypatch):
    """Two kinds of images, of which each is shown with another of its kind."""
    generator = torch.Generator().manual_seed(0)
    kinds = F.interpolate(torch.rand(2, 3, 5, 5, generator=generator), 40)
    images = (kinds.repeat_interleave(3, dim=0) + 0.25 * torch.rand(6, 3, 40, 40, generator=generator)) * 3 - 1
    detector.options = replace(detector.options, kind="texture")
    normal = Normal([images])
    with torch.no_grad():
        detector.begin(normal)
    trainer = detector.trainer(normal)
    monkeypatch.setattr("methods.cascade._changed", lambda pixels, rng: pixels)
    monkeypatch.setattr(trainer, "_query", lambda pixels, *_: Defective(pixels, np.zeros((40, 40), bool)))
    pictures = pixels_of(images)
    for step in range(4):
        queries, references, _ = trainer._drawn(images, np.random.default_rng(step))
        torch.testing.assert_close(queries, pictures)
        chosen = [next(i for i, one in enumerate(pictures) if torch.equal(one, own)) for own in references]
        assert [i // 3 for i in chosen] == [0, 0, 0, 1, 1, 1]
        assert all(own != i for i, own in enumerate(chosen))


def test_what_does_not_fit_memory_is_said_with_its_size(detector, monkeypatch):
    monkeypatch.setattr("methods.cascade.free_on", lambda device: 2**10)
    with pytest.raises(DataError, match=r"features of 3 training images would take .* GiB of memory, and 0\.0 GiB"):
        detector.begin(Normal([torch.zeros(3, 3, 40, 40)]))


def test_kinds_are_told_by_names_of_classes(caught_tasks, tmp_path, capsys):
    """Of the classes of MVTec AD, unless --kind says it; whoever builds a detector without a class has an object."""
    root = make_mvtec(tmp_path / "data", ["carpet", "bolt"])
    for words, kinds in ([], ["object", "texture"]), (["--kind", "object"], ["object", "object"]):
        own = [word for word in small("cpr") if word not in ("--kind", "texture")]
        tasks = caught_tasks([*own, *words, "dataset", *SMALL_DATA, "mvtec", root])
        assert [task.jobs[0].identity["options"]["kind"] for task in tasks] == kinds
        said = capsys.readouterr().err
        assert ("--kind texture is taken, by its name, for carpet" in said) is (not words)
        source = backbones.load("resnet18", "random")
        assert [task.build(source, torch.device("cpu"), torch.float32).is_object for task in tasks] == [
            kind == "object" for kind in kinds
        ]


def test_images_without_a_foreground_are_said(detector):
    same = np.ones((50, 4), np.float32)
    with pytest.raises(DataError, match="looks like their border: use --kind texture"):
        foreground_map(same, same, same, seed=0)


def test_a_model_of_parts_that_do_not_fit_is_refused(detector):
    state = detector.state_dict()
    detector.load_state_dict(state)
    with pytest.raises(RuntimeError, match="it holds 1 and 2 images"):
        detector.load_state_dict({**state, "histograms": torch.zeros(2, 25, 5)})


def test_an_export_beyond_what_a_file_holds_is_refused(detector, monkeypatch):
    assert detector.not_exported == ""
    monkeypatch.setattr("methods.cpr.LARGEST_EXPORT", 100)
    assert "what it keeps of 1 images takes" in detector.not_exported


def test_a_folder_without_textures_is_said_before_anything_is_read(tmp_path, mvtec, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [*small("cpr"), "--texture_dir", str(tmp_path), "dataset", *SMALL_DATA, "mvtec", str(mvtec)]
    with pytest.raises(UsageError, match=f"--texture_dir {tmp_path}: no image in this folder"):
        main.main(words, standalone_mode=False)
    assert not Path("results").exists()


def test_other_textures_train_another_model(detector, tmp_path):
    Image.new("RGB", (9, 9), (255, 0, 255)).save(tmp_path / "a.png")
    images = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    losses = []
    for folder in (None, str(tmp_path)):
        torch.manual_seed(0)
        options = {**asdict(detector.options), "texture_dir": folder, "kind": "texture", "epochs": 1}
        own = CPR(detector.backbone, detector.layers, detector.image_size, **options)
        losses += [stats.loss for stats in own.training_on(Normal([images]))]
    assert losses[0] != losses[1]
