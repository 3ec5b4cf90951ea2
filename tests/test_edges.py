"""Tiny and constant data: every detector gives a right result."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL, SMALL_DATA, make_mvtec, small
from matplotlib.figure import Figure
from PIL import Image
from test_resume import folder

import backbones
import main
from datasets import TableTransform
from detection.variance import known_variance
from detection.whitening import whitening
from errors import DataError
from experiment.show.report import _draw_histogram
from methods import DETECTORS
from methods.cfa import memory_bank
from methods.logicrd import mahalanobis, shrunk
from methods.multimodal import Multimodal

SIDE = 32
SMALLEST = {"dim": 8, "heads": 2, "depth": 1, "epochs": 2}  # Transformer
SETTINGS = [  # and whether the few steps are enough to tell a bright square
    ("net", "--whiten 1e-7 --auto_noise 1 --difference_noise 0.5 --target_embed_dimension 128", False),
    ("net", "--recipe stable --meta_epochs 3", True),
    ("net", "--recipe memory --meta_epochs 3", False),
    ("net", "--recipe memory --meta_epochs 3 --ensemble 2 --match_light off", True),
    ("cfa", "--gamma_c 4", True),
    ("cfa", "--whiten 1e-7", True),
    ("rd", "", False),
    ("stpm", "", False),
    ("efficientad", "", False),
    ("logicrd", "", True),
    ("logicrd", "--no_gse --no_fcp", True),
    ("patchcore", "--reweight 9 --whiten 1e-7", True),
    ("patchcore", "--sampler greedy_coreset --anomaly_scorer_num_nn 3", True),
    ("reconpatch", "", True),
    ("reconpatch", "--whiten 0.1 --sigma 1", True),
    ("cpr", "", True),
    ("template", "", True),
    ("template", "--align affine --centre mean --search 1", True),
    ("template", "--score nearest --align euclidean", True),
    ("template", "--score correlation", True),
    ("frequency", "", False),
    ("frequency", "--mode phot", False),
    ("frequency", "--mode notch", True),
    ("frequency", "--mode residual", False),
    ("frequency", "--mode reference", True),
    ("frequency", "--mode whiten", True),
    ("lowrank", "", True),
    ("lowrank", "--of image", False),
    ("gaussian", "--align_maps", True),
    ("gaussian", "--shrinkage ledoit_wolf --choose smallest", True),
    ("gaussian", "--of patches --shrinkage ledoit_wolf", True),
    ("gaussian", "--of patches --components 3", True),
    ("oneclass", "--whiten 1e-7", True),
    ("oneclass", "--machine gaussian --gamma 0.001", True),
    ("oneclass", "--machine linear --whiten 0", False),
    ("oneclass", "--machine svdd --whiten 0", True),
    ("sparse", "", True),
    ("sparse", "--score mahalanobis --brightness", True),
    ("fastflow", "", False),
    ("fastflow", "--norm cell --conv3x3_only --score_top_k 9", False),
    ("msflow", "", False),
    ("multimodal", "", True),
    ("multimodal", "pixels", True),
]


def drawn(*seeds):
    """Images of their own, of coarse texture: [n, 3, 32, 32]."""
    coarse = [torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return F.interpolate(torch.stack(coarse), SIDE)


def plain(*values):
    return torch.tensor(values).view(-1, 1, 1, 1).repeat(1, 3, SIDE, SIDE)


CASES = {  # batches of normal images
    "one image": [drawn(0)],
    "two images": [drawn(0, 1)],
    "two images in batches of one": drawn(0, 1).split(1),
    "three images": [drawn(0, 1, 2)],
    "equal images": [drawn(0, 0, 0, 0)],
    "one constant image": [plain(0.3)],
    "constant images": [plain(0.3, 0.3, 0.3, 0.3)],
    "constant images in batches of one": plain(0.3, 0.3, 0.3, 0.3).split(1),
    "black images": [plain(-2.1, -2.1, -2.1)],
    "constant images of two kinds": [plain(0.3, -0.5, 0.3, -0.5)],
}


def built(command, words):
    """A detector in its smallest setting and these words."""
    if words == "pixels":
        return Multimodal(
            backbones.load("pixels"), ["input"], (SIDE, SIDE), image_tokens="pixels", columns=[[]], **SMALLEST
        )
    chain = main.main.get_command(None, command)
    options = chain.invoke(chain.make_context(command, [*small(command)[1:], *words.split()]))[0].options
    joint = {"columns": [[]]} if DETECTORS[command].JOINT else {}
    name, layers = ("test_resnet", ["layer1", "layer2"]) if DETECTORS[command].NEEDS_BACKBONE else ("pixels", ["input"])
    return DETECTORS[command](backbones.load(name, "random"), layers, (SIDE, SIDE), **{**options, **joint})


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("command", "words", "tells"), SETTINGS)
def test_tiny_and_constant_data(command, words, tells, case):
    detector, batches = built(command, words), CASES[case]
    detector.fit(batches)
    normal = batches[0][:1]
    spoiled = normal.clone()
    spoiled[..., 12:20, 12:20] += 3
    scores, maps = detector.predict(torch.cat([normal, spoiled, drawn(9)]))
    assert scores.isfinite().all() and maps.isfinite().all()
    assert scores.abs().max() < 1e8
    assert scores[1] > scores[0] or not tells


@pytest.mark.parametrize(
    "rows", [{"a": [1.0, 2.0], "b": [5, 5], "c": ["x", "x"]}, {"a": [1.0, 1.0, 1.0, 1e-3], "b": [1e8, 1e8, 1e8, 1e8]}]
)
def test_two_rows_and_columns_that_never_move(rows):
    table = TableTransform.fit(pd.DataFrame(rows))
    detector = Multimodal(backbones.load("pixels"), ["input"], (SIDE, SIDE), columns=[table.widths], **SMALLEST)
    encoded = torch.from_numpy(table.encode(pd.DataFrame(rows), "rows"))
    detector.fit(encoded.split(1))
    far = encoded[:1] + 100
    scores, maps = detector.predict(torch.cat([encoded, far]))
    assert scores.isfinite().all() and maps.isfinite().all()
    assert scores.argmax() == len(encoded)


def test_whitening_of_fewer_patches_than_dimensions():
    """No direction comes out longer than 1, and those that the patches have come out as long; others are bounded."""
    features = torch.randn(1, 3, 4, 64, generator=torch.Generator().manual_seed(0)) * 5 + 100
    weight, bias = (part.double() for part in whitening([features], 1e-7))
    white = features.flatten(0, 2).double() @ weight.T + bias
    lengths = torch.linalg.eigvalsh(white.T @ white / 12)
    assert lengths[-1] < 1.02
    assert lengths[-11:].min() > 0.98
    assert torch.linalg.matrix_norm(weight, 2) < 1.01 / (1e-7**0.5 * features.std(dim=(0, 1, 2)).min())


@pytest.mark.parametrize("value", [0.0, 0.1, 3e4])
def test_what_never_moves_is_measured_in_units_of_its_size(value):
    """Rounding is no movement; what is new is about as far away as it is large."""
    features = torch.full((3, 4, 4, 5), value)
    weight, bias = whitening(features * (1 + 1e-7 * torch.randn(3, 4, 4, 5)), 0.1)
    assert (features @ weight.T + bias).abs().max() < 1e-3
    far = max(value, 1) / (value or 1)  # in units of its size
    new = (features + max(value, 1)).flatten(0, 2) @ weight.T + bias
    torch.testing.assert_close(new, torch.full_like(new, far / 0.1**0.5), rtol=1e-3, atol=0)
    assert memory_bank([features @ weight.T + bias], 3, seed=0).isfinite().all()
    vectors = features.flatten(0, 2)
    for count in (1, 2, 5):
        mean, precision = shrunk(vectors[:count])
        assert mahalanobis(vectors, mean, precision).max() < 1e-3
        new = mahalanobis(vectors + max(value, 1), mean, precision)
        torch.testing.assert_close(new, torch.full_like(new, far * 5**0.5), rtol=1e-3, atol=0)


def test_variances_that_are_known_stay():
    variance, mean = torch.tensor([0.0, 1e-5]).double(), torch.tensor([7.0, 1.0])
    assert torch.equal(known_variance(variance, mean), variance)
    assert known_variance(0 * variance, 0 * mean).tolist() == [1, 1]
    assert known_variance(0 * variance, mean).tolist() == [25, 25]


def test_features_that_are_not_finite_are_said():
    with pytest.raises(DataError, match="not finite: try --precision fp32"):
        whitening([torch.full((1, 2, 2, 4), torch.inf)], 0.1)


@pytest.mark.parametrize("value", [0.0, -1.35e25, 1e-30])
def test_equal_scores_have_a_histogram(value):
    axes = Figure().subplots()
    _draw_histogram(axes, np.array([value, value, value]), np.array([True, False, False]), value, "image")
    heights = [steps.get_xy()[:, 1].max() for steps in axes.patches]
    assert sum(heights) == 3


@pytest.mark.parametrize("command", SMALL)
def test_a_run_of_black_images_is_reported(tmp_path, monkeypatch, command):
    """Its scores are all the same, and none is anomalous."""
    if command != "net":
        monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)  # the charts of equal scores are all alike
    root = make_mvtec(tmp_path / "mvtec", ["bolt"], size=SIDE, train=2, test=1)
    for path in root.glob("bolt/t*/*/*.png"):
        Image.new("RGB", (SIDE, SIDE)).save(path)
    monkeypatch.chdir(tmp_path)
    words = ["--precision", "fp32", *small(command), "dataset", *SMALL_DATA, "--batch_size", "1", "mvtec", str(root)]
    main.main(words, standalone_mode=False)
    main.main(["report", str(folder(tmp_path)), "--out", "report.html"], standalone_mode=False)
    table = pd.read_csv(folder(tmp_path) / "models/0/mvtec_bolt/predictions.csv")
    assert table["score"].nunique() == 1
    assert not table["decision"].any()
