"""Images cut into tiles: where these lie, what is made of them, and every command with a model of tiles."""

import json
import math
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, SMALL_DATA, SMALL_NET, make_mvtec, small
from hypothesis import given, settings
from hypothesis import strategies as st

import main
from datasets import Stitch, Tiling, spread
from detection import Prediction
from detection.whole_images import predicted, stitched
from errors import DataError, UsageError
from methods import load

PATCHCORE = small("patchcore")
CUT = ["--num_workers", "0", "--resize", "48", "--imagesize", "48", "--tile", "32x24", "--overlap", "0.25"]
TILES = 6  # of an image


@st.composite
def tilings(draw):
    side = st.integers(1, 12)
    image = draw(side), draw(side)
    tile = tuple(draw(st.integers(1, whole)) for whole in image)
    return Tiling(image, tile, draw(st.sampled_from([0, 0.1, 0.25, 0.5, 0.9])))


def whole(tiling, maps):
    stitch = Stitch(tiling)
    for number, own in enumerate(maps):
        stitch.lay(number, own)
    return stitch.map


@given(tilings(), st.integers(1, 5))
@settings(max_examples=150, deadline=None)
def test_tiles_cover_images_and_make_them_again(tiling, size):
    """Every pixel lies in a tile, neighbours have at least their share in common, and what was cut comes back."""
    for starts, side, length in zip(tiling.starts, tiling.tile, tiling.image, strict=True):
        assert (starts[0], starts[-1]) == (0, length - side)
        common = [first + side - second for first, second in pairwise(starts)]
        assert all(min(side - 1, round(side * tiling.overlap)) <= own < side for own in common)
        assert len(set(common[:-1])) < 2  # but the last, which is moved inwards
    images = torch.rand(2, 1, *tiling.image, generator=torch.Generator().manual_seed(0))
    tiles = torch.cat(list(tiling.batches(images, size)))
    assert tiles.shape == (2 * tiling.count, 1, *tiling.tile)
    again = torch.stack([whole(tiling, own[:, 0]) for own in tiles.split(tiling.count)])
    torch.testing.assert_close(again, images[:, 0], rtol=0, atol=0 if not tiling.overlap else 1e-6)
    assert (tiling.numbers([1, 0]) == [*range(tiling.count, 2 * tiling.count), *range(tiling.count)]).all()


def test_no_seam_is_seen_where_tiles_overlap():
    """Two maps of 0 and 1 go over into each other; without overlap each has its place, the last above."""
    tiles = torch.stack([torch.zeros(4, 16), torch.ones(4, 16)])
    (row, *others) = whole(Tiling((4, 24), (4, 16), 0.5), tiles)
    assert all((own == row).all() for own in others)
    assert (row[:8] == 0).all() and (row[16:] == 1).all()
    assert (row.diff()[7:16] > 0).all() and row.diff().max() < 0.2
    assert whole(Tiling((4, 24), (4, 16)), tiles)[0].tolist() == [0] * 8 + [1] * 16


@pytest.mark.parametrize("size", [1, 4, 7])
def test_scores_are_the_highest_of_tiles_in_batches_of_any_size(size):
    tiling, most = Tiling((5, 9), (3, 4), 0.25), 0
    images = torch.rand(3, 2, 5, 9, generator=torch.Generator().manual_seed(0))

    def predict(tiles):
        nonlocal most
        most = max(most, len(tiles))
        scores = tiles.flatten(1).sum(1)
        return Prediction(scores, tiles[:, 0], {"twice": 2 * scores})

    found = predicted(predict, images, tiling, size)
    tiles = torch.stack([tiling.cut(images, number) for number in range(tiling.count)], dim=1)
    expected = tiles.flatten(2).sum(2).amax(1)
    torch.testing.assert_close(found.scores, expected)
    torch.testing.assert_close(found.terms["twice"], 2 * expected)
    torch.testing.assert_close(found.maps, images[:, 0])
    assert most == min(size, 3 * tiling.count)
    no_maps = next(stitched([Prediction(torch.arange(float(tiling.count)))], tiling))
    assert no_maps.maps is None and no_maps.scores.tolist() == [tiling.count - 1]
    with pytest.raises(ValueError, match=r"images of \[5, 9\], not \[5, 8\]"):
        next(tiling.batches(images[..., :8], size))


def run(folder, mvtec, detector, *data, words=()):
    """Train a small model of a class; its folder."""
    results = ["--results_path", str(folder), "--precision", "fp32"]
    main.main([*results, *words, *detector, "dataset", *data, "-d", "bolt", "mvtec", str(mvtec)], standalone_mode=False)
    return next(folder.rglob("mvtec_bolt"))


def table(folder):
    return pd.read_csv(folder / "predictions.csv")


@pytest.mark.parametrize("words", [(), ("--feature_bank", "off")], ids=["bank", "images"])
@pytest.mark.parametrize("detector", [PATCHCORE, SMALL_NET], ids=["patchcore", "net"])
def test_one_tile_is_the_image_to_the_byte(tmp_path, mvtec, detector, words):
    kept = []
    for name, tile in (("whole", ()), ("tile", ("--tile", "32"))):
        folder = run(tmp_path / name, mvtec, detector, *SMALL_DATA, *tile, words=words)
        description = json.loads((folder / "model.json").read_text())
        assert (description.pop("tiles") is None) == (not tile)
        files = [(folder / file).read_bytes() for file in ("predictions.csv", "checkpoint.safetensors")]
        kept.append((description, files, (folder.parents[2] / "results.csv").read_bytes()))
    assert kept[0] == kept[1]


@pytest.fixture(scope="module")
def cut(mvtec, tmp_path_factory):
    """The folder of a model of tiles; tests must not change it."""
    return run(tmp_path_factory.mktemp("cut"), mvtec, PATCHCORE, *CUT)


def test_scores_maps_and_thresholds_are_of_whole_images(cut, mvtec, capsys):
    model = load(cut)
    assert model.detector.image_size == (24, 32) and model.tiling.count == TILES
    found = table(cut)
    prediction = model.predict([mvtec / name for name in found["image"]])
    np.testing.assert_allclose(prediction.scores, found["score"], rtol=1e-4, atol=1e-6)
    assert prediction.maps.shape == (4, 48, 48)
    normal = model.predict(sorted((mvtec / "bolt" / "train" / "good").iterdir()))
    thresholds = model.thresholds
    assert thresholds.images == len(thresholds.scores) == 4
    np.testing.assert_allclose(thresholds.scores, normal.scores.sort().values, rtol=1e-4, atol=1e-6)
    assert thresholds.pixel <= normal.maps.max() * (1 + 1e-4)
    assert model.description.tiles == {"width": 32, "height": 24, "overlap": 0.25, "skip_empty_tiles": 0.0}


def test_without_a_bank_it_is_the_same(cut, tmp_path, mvtec):
    again = run(tmp_path, mvtec, PATCHCORE, *CUT, words=("--feature_bank", "off"))
    np.testing.assert_allclose(table(again)["score"], table(cut)["score"], rtol=1e-4, atol=1e-6)
    first, second = (json.loads((own / "model.json").read_text())["metrics"] for own in (cut, again))
    assert second == pytest.approx(first, abs=1e-6)


def test_predict_takes_tiles_in_batches(cut, mvtec, tmp_path, monkeypatch):
    """Two at once, never an image's all; of pictures at the image's size, and of regions too."""
    sizes, loaded = [], load(cut).detector.__class__
    monkeypatch.setattr(
        loaded, "predict_read", lambda own, read, real=loaded.predict_read: sizes.append(len(read)) or real(own, read)
    )
    words = ["--batch_size", "2", "--map", "both", "--regions", "--full_size", "--out", str(tmp_path / "out")]
    main.main(["predict", str(cut), str(mvtec / "bolt" / "test"), *words], standalone_mode=False)
    assert sizes == [2] * (4 * TILES // 2)
    found = table(tmp_path / "out")
    np.testing.assert_allclose(found["score"], table(cut)["score"], rtol=1e-4, atol=1e-6)
    assert np.load(tmp_path / "out" / found["map"][0]).shape == (48, 48)


def test_passes_are_over_tiles_and_empty_ones_are_left_out(tmp_path, capsys):
    """Of every training image a tile of one colour, and another that is nearly so; a pass has the steps of the rest."""
    from PIL import Image

    from experiment.train.training_set import TrainingEmbeddings

    make_mvtec(tmp_path, ["bolt"])
    for path in (tmp_path / "bolt" / "train" / "good").iterdir():
        pixels = np.array(Image.open(path))
        pixels[:24, :24] = 90
        pixels[24:, 24:] = 90 + np.arange(24)[:, None] % 2
        Image.fromarray(pixels).save(path)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        kept = TrainingEmbeddings.__init__

        def init(own, *words):
            kept(own, *words)
            seen.append(own)

        patch.setattr(TrainingEmbeddings, "__init__", init)
        data = ["--num_workers", "0", "--resize", "48", "--imagesize", "48", "--tile", "24", "--skip_empty_tiles", "1"]
        by_bank = run(tmp_path / "a", tmp_path, PATCHCORE, *data, words=("--calibrate", "2"))
        again = run(tmp_path / "b", tmp_path, PATCHCORE, *data, words=("--feature_bank", "off"))
    assert capsys.readouterr().err.count("8 of 16 tiles to train on are empty and left out") == 2
    places = [own.places[0].tolist() for own in seen]
    first, *folds, without = places
    assert first == without == [1, 2, 5, 6, 9, 10, 13, 14]
    assert (len(seen[0]), folds) == (4, [[1, 2, 5, 6]] * 2)
    np.testing.assert_allclose(table(again)["score"], table(by_bank)["score"], rtol=1e-4, atol=1e-6)
    thresholds = load(by_bank).thresholds
    assert (thresholds.images, thresholds.unseen) == (4, 4)  # images, not tiles
    with pytest.raises(DataError, match="--skip_empty_tiles 127 leaves no tile to train on: lower it"):
        run(tmp_path / "c", tmp_path, PATCHCORE, *data[:-1], "127")


def test_spread():
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    assert spread(image) == 0
    image[:, :2] = 20
    assert spread(image) == 10


def test_augmented_tiles_and_held_out_images(tmp_path, mvtec):
    """Tiles in any order, each of its image as that is changed; thresholds are of whole held-out images."""
    data = ["--augment", "--train_val_split", "0.5", "--save_segmentation_images"]
    folder = run(tmp_path, mvtec, [*SMALL_NET, "--match_light", "gain"], *CUT, *data[:3], words=data[3:])
    thresholds = load(folder).thresholds
    assert (thresholds.source, thresholds.images) == ("held-out normal images", 2)
    assert len(list((folder / "segmentations").rglob("*.png"))) == 4


def test_what_is_done_with_a_model_of_tiles(cut, mvtec, tmp_path):
    """--test scores as training did; calibrate and extend make models of the same tiles."""
    again = tmp_path / "run"
    shutil.copytree(cut.parents[5], again)
    folder = run(again, mvtec, PATCHCORE, *CUT, words=("--test",))
    assert (folder / "predictions.csv").read_bytes() == (cut / "predictions.csv").read_bytes()
    good = str(mvtec / "bolt" / "train" / "good")
    for command in ("calibrate", "extend"):
        out = tmp_path / command
        words = [] if command == "calibrate" else ["--num_workers", "0"]
        main.main([command, str(cut), good, "--out", str(out), *words], standalone_mode=False)
        made = load(out)
        assert made.description.tiles == load(cut).description.tiles
        assert (made.thresholds.images, len(made.thresholds.scores)) == (4, 4)


def test_a_run_knows_its_tiles(cut, mvtec, tmp_path, capsys):
    """The same command does nothing anew, another overlap is another run, and a run of before had no tiles."""
    again = tmp_path / "run"
    shutil.copytree(cut.parents[5], again)
    time = next(again.rglob("model.json")).stat().st_mtime_ns
    folder = run(again, mvtec, PATCHCORE, *CUT)
    assert (folder / "model.json").stat().st_mtime_ns == time
    with pytest.raises(UsageError, match=r"dataset\.overlap 0\.25, now 0\.0"):
        run(again, mvtec, PATCHCORE, *CUT[:-2])
    path = folder.parents[2] / "config.json"
    config = json.loads(path.read_text())
    for name in ("tile", "overlap", "skip_empty_tiles"):
        config["dataset"].pop(name)
    path.write_text(json.dumps(config))
    with pytest.raises(UsageError, match=r"dataset\.tile unset, now 32x24"):
        run(again, mvtec, PATCHCORE, *CUT)
    run(again, mvtec, PATCHCORE, *CUT[:-4])


def test_an_export_is_of_tiles_and_the_docs_say_how_they_are_put_together(cut, mvtec, tmp_path):
    path = tmp_path / "m.onnx"
    main.main(["export", str(cut), "--out", str(path)], standalone_mode=False)
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape[1:] == [24, 32, 3]
    notes = session.get_modelmeta().custom_metadata_map
    assert json.loads(notes["tiles"]) == {"width": 32, "height": 24, "overlap": 0.25, "skip_empty_tiles": 0.0}
    page = (ROOT / "docs" / "models.md").read_text()
    one, many = (block.split("```")[0] for block in page.split("```python\n")[1:] if "session.run" in block)
    script = "\n".join([*one.strip().splitlines()[:-2], many])
    image = next((mvtec / "bolt" / "test").rglob("*.png"))
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["script", str(path), str(image)])
        exec(compile(script, "docs", "exec"), found)
    expected = load(cut).predict(image)
    assert found["score"] == pytest.approx(expected.scores.item(), abs=1e-3)
    np.testing.assert_allclose(found["anomaly_map"], expected.maps[0], atol=1e-3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("dataset --tile 300 --imagesize 224 elpv", "--tile 300 is larger than the images that it is cut from, of 224"),
        ("dataset --tile 32x300 elpv", "choose a smaller one, or a larger --imagesize"),
        ("dataset --tile 0 elpv", "--tile 0: expected a size in pixels, such as 256 or 256x128"),
        ("dataset --tile 32x elpv", "--tile 32x: expected a size"),
        ("dataset --tile 64 --overlap 1 elpv", "--overlap"),
        ("dataset --tile 64 --overlap -0.1 elpv", "--overlap"),
        ("dataset --overlap 0.5 elpv", "--overlap has no effect without --tile"),
        (
            "dataset --skip_empty_tiles 3 --tile 224 elpv",
            "--skip_empty_tiles has no effect without --tile, or with one",
        ),
    ],
)
def test_bad_tiles_are_one_line(run_main, words, message):
    done = run_main(*PATCHCORE, *words.split())
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


def test_tables_have_no_tiles(run_main, tmp_path, mvtec):
    (tmp_path / "t.csv").write_text("a,y\n1,0\n2,0\n3,1\n")
    of_table = ["dataset", "--label", "y", "--tile", "64", "table", "t.csv"]
    done = run_main("multimodal", *of_table)
    assert done.returncode == 2 and "--tile has no effect on a table" in done.stderr.splitlines()[-1]
    both = [*small("multimodal"), "dataset", "--tile", "64", "mvtec", mvtec, *of_table[:3], *of_table[5:]]
    done = run_main(*both)
    assert done.returncode == 2 and "multimodal takes no --tile where" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "value"), [("width", 0), ("height", 49), ("overlap", 1.0), ("overlap", math.nan), ("more", 1)]
)
def test_a_description_of_tiles_that_cannot_be(cut, tmp_path, name, value):
    folder = Path(shutil.copytree(cut, tmp_path / "model"))
    description = json.loads((folder / "model.json").read_text())
    description["tiles"][name] = value
    (folder / "model.json").write_text(json.dumps(description))
    with pytest.raises(DataError, match=r"model\.json"):
        load(folder)
