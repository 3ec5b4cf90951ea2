"""Which geometry images take, what the network does not see of them, and that both are said."""

import json

import numpy as np
import pytest
import trees
from conftest import SMALL_DATA, SMALL_NET
from trees import TREES, save

import main
from datasets import DATASETS, BatchLoader, ImageDataset, ImageTransform, Sample, Seen
from errors import UsageError
from experiment.dataset_config import DatasetConfig

WIDE = (24, 72)  # height and width


def run(where, *words, net=(), before=()):
    command = ["--results_path", where / "results", *before, *SMALL_NET, *net, "dataset", *SMALL_DATA, *words]
    main.main(list(map(str, command)), standalone_mode=False)
    folder = where / "results" / "project" / "group" / "test"
    model = next(folder.rglob("model.json"))
    return json.loads((folder / "config.json").read_text())["dataset"], json.loads(model.read_text())


def make_wide(root, shape=WIDE):
    """Images whose defects lie in the middle, across the border of the central square, and at the left edge."""
    rng = np.random.default_rng(0)
    for i in range(3):
        for part in ("train/good", "test/good", "test/crack"):
            save(root / "bolt" / part / f"{i:03}.png", rng.integers(60, 120, (*shape, 3), dtype=np.uint8))
        defect = np.zeros(shape, np.uint8)
        column = (shape[1] // 2, shape[1] // 2 - shape[0] // 2 - 2, 0)[i]
        defect[10:14, column : column + 4] = 255
        save(root / "bolt" / "ground_truth" / "crack" / f"{i:03}_mask.png", defect)
    return root


SAID = (
    "mvtec_bolt: 33.3% of the test images is seen (--resize 32 --imagesize 32 --resize_mode aspect); of 3 defects 1 "
    "lie wholly outside and 1 partly; --resize_mode square shows all"
)


@pytest.mark.parametrize(
    ("net", "before", "workers"),
    [
        ([], [], "0"),
        ([], [], "1"),
        ([], ["--feature_bank", "off"], "0"),
        (["--train_backbone", "--meta_epochs", "2"], [], "0"),
    ],
)
def test_what_is_cut_away_is_said_once(tmp_path, capsys, net, before, workers):
    """Whether images are embedded once or in every pass, here or by readers."""
    make_wide(tmp_path / "data")
    words = ["--resize", "32", "--num_workers", workers, "mvtec", tmp_path / "data"]
    run(tmp_path, *words, net=net, before=before)
    assert capsys.readouterr().err.count(SAID) == 1
    run(tmp_path, *words, net=net, before=[*before, "--test"])
    assert capsys.readouterr().err.count(SAID) == 1


def test_nothing_is_said_where_all_is_seen(tmp_path, capsys):
    make_wide(tmp_path / "data")
    data, model = run(tmp_path, "--resize_mode", "square", "mvtec", tmp_path / "data")
    errors = capsys.readouterr().err
    assert "is seen" not in errors
    assert "mvtec: not all images are square; all are resized whole to 32 x 32 (--resize_mode square" in errors
    assert data["resize_mode"] == model["transform"]["resize_mode"] == "square"


@pytest.mark.parametrize("workers", [0, 2])
def test_seen_adds_up_over_images_and_defects(tmp_path, workers):
    make_wide(tmp_path)
    samples = DATASETS["mvtec"].read_class(tmp_path, "bolt").test
    loader = BatchLoader(ImageDataset(samples, ImageTransform(24, 24)), 4, workers)
    for _ in range(2):
        list(loader)
        assert loader.seen.images == 6
        assert loader.seen.share == pytest.approx(2)
        assert (loader.seen.defects, loader.seen.partly, loader.seen.wholly) == (3, 1, 1)
    both = Sample(samples[0].image_path, samples[1].mask_paths + samples[2].mask_paths, True, "c", "d")
    loader = BatchLoader(ImageDataset([both], ImageTransform(24, 24)), 4, workers)
    list(loader)
    assert loader.seen == Seen(1, pytest.approx(1 / 3), 2, 1, 1)
    loader = BatchLoader(ImageDataset([both], ImageTransform(24, 24, resize_mode="square")), 4, workers)
    list(loader)
    assert loader.seen == Seen(1, 1, 2, 0, 0)


def test_a_mask_without_a_defect_lies_nowhere(tmp_path):
    save(tmp_path / "a.png", np.zeros((*WIDE, 3), np.uint8))
    save(tmp_path / "m.png", np.zeros(WIDE, np.uint8))
    loader = BatchLoader(
        ImageDataset([Sample(tmp_path / "a.png", (tmp_path / "m.png",), True, "c", "d")], ImageTransform(24, 24)), 1
    )
    list(loader)
    assert loader.seen == Seen(1, pytest.approx(1 / 3), 1, 0, 0)


GEOMETRY = {  # of the sizes that each is published with
    **dict.fromkeys(("mvtec", "mpdd", "cifar10", "elpv", "assembly", "table"), "aspect"),
    **dict.fromkeys(("mvtec_loco", "mvtecloco", "btad", "visa", "sdd", "sdd2", "mtd"), "square"),
    "folder": None,
}


def config(name, **options):
    values = {"data_path": None, "subdatasets": (), "train_val_split": 1, "batch_size": 2, "num_workers": 0}
    values |= {"resize": 40, "imagesize": 32, "random": None}
    return DatasetConfig(name, **{**values, **options})


@pytest.mark.parametrize("name", DATASETS)
def test_every_dataset_has_a_geometry(name):
    assert config(name).resize_mode == GEOMETRY[name]
    assert config(name, resize_mode="aspect").resize_mode == "aspect"
    assert config(name, resize_mode="square").resize_mode == "square"


@pytest.mark.parametrize("build", [trees.visa, trees.sdd2, trees.mtd, trees.mvtec], ids=lambda build: build.__name__)
def test_runs_take_the_dataset_s_geometry_and_record_it(tmp_path, build):
    build(tmp_path / "data")
    name = build.__name__
    words = ["-d", TREES[build].classes[0], name, tmp_path / "data"]
    data, model = run(tmp_path, *words)
    assert data["resize_mode"] == model["transform"]["resize_mode"] == GEOMETRY[name]
    (tmp_path / "results").rename(tmp_path / "first")
    data, model = run(tmp_path, "--resize_mode", "aspect", *words)
    assert data["resize_mode"] == model["transform"]["resize_mode"] == "aspect"


@pytest.mark.parametrize(("shape", "mode"), [((48, 48), "aspect"), ((48, 50), "square"), ((30, 150), "square")])
def test_one_s_own_images_decide(tmp_path, capsys, shape, mode):
    make_wide(tmp_path / "data", shape)
    data, model = run(tmp_path, "folder", tmp_path / "data")
    assert data["resize_mode"] == model["transform"]["resize_mode"] == mode
    said = "folder: not all images are square; all are resized whole to 32 x 32" in capsys.readouterr().err
    assert said == (mode == "square")


def test_a_crop_larger_than_the_image_is_refused_where_there_is_a_crop(tmp_path):
    make_wide(tmp_path / "data", (48, 48))
    words = ["--resize", "30", "folder", tmp_path / "data"]
    with pytest.raises(UsageError, match="--resize 30 is smaller than --imagesize 32"):
        run(tmp_path, *words)
    make_wide(tmp_path / "data")
    assert run(tmp_path, *words)[0]["resize_mode"] == "square"
