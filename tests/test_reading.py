"""From files to pixels: orientation, transparency, depth and size, the same way wherever images are read."""

import json
import re
import shutil
import struct
import zlib

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import SMALL_DATA, SMALL_NET, make_mvtec
from PIL import Image

import main
import simplenet
from datasets import DATASETS, BatchLoader, ImageDataset, ImageTransform, Reading, Sample, check_headers, read_image
from datasets.decode import read_header
from datasets.masks import read_mask
from detection.description import UNSAID
from errors import DataError, UsageError

TURN = Image.Transpose
STORED = {  # how a photograph is stored that an orientation turns upright
    1: None,
    2: TURN.FLIP_LEFT_RIGHT,
    3: TURN.ROTATE_180,
    4: TURN.FLIP_TOP_BOTTOM,
    5: TURN.TRANSPOSE,
    6: TURN.ROTATE_90,
    7: TURN.TRANSVERSE,
    8: TURN.ROTATE_270,
}


def save_turned(image: Image.Image, path, orientation: int) -> None:
    """The image as a camera that was held otherwise stores it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = image if STORED[orientation] is None else image.transpose(STORED[orientation])
    options = {"quality": 100, "subsampling": 0} if path.suffix == ".jpg" else {}
    stored.save(path, exif=exif, **({"lossless": True} if path.suffix == ".webp" else options))


def photograph(seed: int = 0, size: tuple[int, int] = (60, 40)) -> Image.Image:
    """Smooth, so that JPEG keeps it, and another after every turn."""
    small = np.random.default_rng(seed).integers(40, 200, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def run(where, *words, detector=SMALL_NET, results="results"):
    """A run in this process; the folder of its first model."""
    command = ["--results_path", where / results, "--precision", "fp32", *detector, "dataset", *SMALL_DATA, *words]
    main.main(list(map(str, command)), standalone_mode=False)
    return next((where / results).rglob("model.json")).parent


def scores(model):
    return pd.read_csv(model / "predictions.csv")["score"].to_numpy()


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_photographs_are_turned_as_viewers_turn_them(tmp_path, ending):
    upright, path = photograph(), tmp_path / f"photo.{ending}"
    for orientation in STORED:
        save_turned(upright, path, orientation)
        assert read_header(path)[:2] == (60, 40)
        found = np.asarray(read_image(path)).astype(int)
        assert np.abs(found - np.asarray(upright)).max() <= (12 if ending == "jpg" else 0), orientation


def test_damaged_exif_says_nothing(tmp_path):
    photograph().save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0")
    assert read_image(tmp_path / "a.jpg").size == read_header(tmp_path / "a.jpg")[:2] == (60, 40)


def test_masks_without_orientation_stay_and_those_with_it_are_turned(tmp_path):
    mask = np.zeros((40, 60), np.uint8)
    mask[5:10, 40:50] = 255
    save_turned(photograph(), tmp_path / "image.jpg", 6)
    for name, orientation in (("plain.png", 1), ("turned.png", 8)):
        save_turned(Image.fromarray(mask), tmp_path / name, orientation)
        sample = Sample(tmp_path / "image.jpg", (tmp_path / name,), True, "c", "d")
        check_headers([sample])
        np.testing.assert_array_equal(read_mask(tmp_path / name).values, mask)
        found = ImageDataset([sample], ImageTransform(40, 40, resize_mode="square"))[0][1]
        assert found[5:10].any()
        assert not found[12:].any()


def test_a_mask_of_the_stored_image_is_refused_with_the_reason(tmp_path):
    save_turned(photograph(), tmp_path / "image.jpg", 6)
    Image.new("L", (40, 60)).save(tmp_path / "mask.png")
    sample = Sample(tmp_path / "image.jpg", (tmp_path / "mask.png",), True, "c", "d")
    with pytest.raises(
        DataError, match=r"is 40 x 60 .* is 60 x 40, turned as its EXIF orientation \(6\) says: turn the"
    ):
        check_headers([sample])
    check_headers([sample], Reading(oriented=False))
    Image.new("L", (41, 60)).save(tmp_path / "mask.png")
    with pytest.raises(DataError, match=r"is 60 x 40$"):
        check_headers([sample])


def turn_all(source, target, orientation):
    """A copy of a tree of PNGs whose photographs are stored turned, and whose masks are as they were."""
    shutil.copytree(source, target)
    for path in target.rglob("*.png"):
        if "ground_truth" not in path.parts:
            save_turned(Image.open(path).convert("RGB"), path, orientation)
    return target


def test_turned_photographs_give_the_numbers_of_upright_ones(tmp_path, capsys):
    """In training, evaluation, predict and from Python; models that were trained before keep their reading."""
    upright = make_mvtec(tmp_path / "upright", ["bolt"])
    turned = turn_all(upright, tmp_path / "turned", 6)
    first, second = (run(tmp_path, "mvtec", data, results=data.name + "_runs") for data in (upright, turned))
    assert "mvtec_bolt: 8 images are turned as their EXIF orientation says" in capsys.readouterr().err
    assert (first / "predictions.csv").read_bytes() == (second / "predictions.csv").read_bytes()
    rows = [json.loads((model / "job.json").read_text())["row"] for model in (first, second)]
    assert rows[0] == rows[1]
    assert json.loads((second / "model.json").read_text())["reading"]["oriented"] is True
    paths = sorted((turned / "bolt" / "test" / "crack").iterdir())
    words = ["predict", second, *paths, "--out", tmp_path / "out", "--map", "none"]
    assert main.main(list(map(str, words)), standalone_mode=False) == 0
    found = pd.read_csv(tmp_path / "out" / "predictions.csv")["score"]
    np.testing.assert_allclose(found, scores(second)[: len(paths)], atol=1e-6)
    np.testing.assert_allclose(simplenet.load(second).predict(paths).scores, found, atol=1e-6)
    before = scores(second)
    description = json.loads((second / "model.json").read_text())
    del description["reading"]
    (second / "model.json").write_text(json.dumps(description))
    assert simplenet.load(second).predict(paths[:1]).scores[0] != pytest.approx(found[0])
    words = ["--results_path", tmp_path / "turned_runs", "--precision", "fp32", "--test", *SMALL_NET, "dataset"]
    main.main(list(map(str, [*words, *SMALL_DATA, "mvtec", turned])), standalone_mode=False)
    assert not np.allclose(scores(second), before)


def transparent(mode: str) -> Image.Image:
    """The left half white, the right half white that is hidden."""
    image = Image.new("RGBA", (8, 4), (255, 255, 255, 255))
    image.paste((255, 255, 255, 0), (4, 0, 8, 4))
    if mode != "P":
        return image.convert(mode)
    palette = Image.new("P", (8, 4), 0)
    palette.putpalette([255, 255, 255, 255, 255, 255])
    palette.paste(1, (4, 0, 8, 4))
    palette.info["transparency"] = 1
    return palette


@pytest.mark.parametrize(
    ("mode", "ending"), [("RGBA", "png"), ("LA", "png"), ("P", "png"), ("P", "gif"), ("RGBA", "tif")]
)
def test_what_is_transparent_is_black(tmp_path, mode, ending):
    path = tmp_path / f"image.{ending}"
    transparent(mode).save(path)
    assert read_header(path).has_alpha
    found = np.asarray(read_image(path))
    assert (found[:, :4] == 255).all()
    assert (found[:, 4:] == 0).all()
    assert (np.asarray(read_image(path, Reading(background=None))) == 255).all()


def test_a_palette_with_alpha_is_laid_on_black(tmp_path):
    image = transparent("P")
    image.info.clear()
    image.putpalette([255, 255, 255, 255, 255, 255, 255, 0], "RGBA")
    image.save(tmp_path / "a.png")
    found = np.asarray(read_image(tmp_path / "a.png"))
    assert (found[:, :4] == 255).all()
    assert (found[:, 4:] == 0).all()


def test_a_colour_that_is_declared_transparent_is_black(tmp_path):
    image = Image.new("RGB", (8, 4), (200, 10, 10))
    image.paste((1, 2, 3), (4, 0, 8, 4))
    image.save(tmp_path / "key.png", transparency=(200, 10, 10))
    found = np.asarray(read_image(tmp_path / "key.png"))
    assert found[0].tolist() == [[0, 0, 0]] * 4 + [[1, 2, 3]] * 4


@pytest.mark.parametrize("bits", [10, 12, 16])
def test_transparent_16_bit_colours(tmp_path, bits):
    full = 2**bits - 1
    pixels = np.full((4, 8, 4), full, np.uint16)
    pixels[:, 4:, 3] = 0
    cv2.imwrite(str(tmp_path / "a.png"), pixels)
    found = np.asarray(read_image(tmp_path / "a.png", Reading(bit_depth=bits)))
    assert (found[:, :4] == 255).all()
    assert (found[:, 4:] == 0).all()


def test_transparency_is_said_once_per_class(tmp_path, capsys):
    make_mvtec(tmp_path / "data", ["bolt", "nut"])
    for path in (tmp_path / "data" / "bolt" / "train").rglob("*.png"):
        Image.open(path).convert("RGBA").save(path)
    model = run(tmp_path, "mvtec", tmp_path / "data")
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "transparent" in line] == ["mvtec_bolt: 4 images are transparent: laid on black"]
    assert json.loads((model / "model.json").read_text())["reading"]["background"] == "black"


def deepen(source, target, bits, ending=".png"):
    """A copy of a tree whose photographs hold grey values of so many bits in 16."""
    shutil.copytree(source, target)
    for path in list(target.rglob("*.png")):
        if "ground_truth" not in path.parts:
            grey = np.asarray(Image.open(path).convert("L")).astype(np.float64) / 255
            path.unlink()
            cv2.imwrite(str(path.with_suffix(ending)), np.round(grey * (2**bits - 1)).astype(np.uint16))
    return target


def test_the_depth_is_found_kept_and_used(tmp_path, capsys):
    """Of 8, 10, 12 and 16 bits in 16-bit files: the same images, the same scores."""
    source, found = make_mvtec(tmp_path / "source", ["bolt"]), {}
    for bits in (8, 10, 12, 16):
        data = deepen(source, tmp_path / f"{bits}", bits)
        model = run(tmp_path, "mvtec", data, results=f"runs{bits}")
        assert f"mvtec_bolt: 16-bit files are read as of {bits} bits" in capsys.readouterr().err
        assert json.loads((model / "model.json").read_text())["reading"]["bit_depth"] == bits
        found[bits] = scores(model)
        paths = sorted((data / "bolt" / "test" / "crack").iterdir())
        words = ["predict", model, *paths, "--out", tmp_path / f"out{bits}", "--map", "none"]
        assert main.main(list(map(str, words)), standalone_mode=False) == 0
        table = pd.read_csv(tmp_path / f"out{bits}" / "predictions.csv")
        np.testing.assert_allclose(table["score"], found[bits][: len(paths)], atol=1e-6)
    for bits in (10, 12, 16):
        np.testing.assert_allclose(found[bits], found[8], atol=0.02)
    before = (tmp_path / "runs12/project/group/test/results.csv").read_bytes()
    words = ["--results_path", tmp_path / "runs12", "--precision", "fp32", "--test", *SMALL_NET, "dataset", *SMALL_DATA]
    main.main(list(map(str, [*words, "mvtec", tmp_path / "12"])), standalone_mode=False)
    assert (tmp_path / "runs12/project/group/test/results.csv").read_bytes() == before
    with pytest.raises(UsageError, match=r"reading\.bit_depth 12, not 14"):
        main.main(list(map(str, [*words, "--bit_depth", "14", "mvtec", tmp_path / "12"])), standalone_mode=False)


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_level_of_a_depth(tmp_path, ending, channels):
    """Grey and colours: 4,096 levels become 256, not 17."""
    path = tmp_path / f"deep.{ending}"
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    cv2.imwrite(str(path), values if channels == 1 else np.stack([values] * 3, axis=2))
    assert read_header(path).is_deep
    found = np.asarray(read_image(path, Reading(bit_depth=12)))
    np.testing.assert_array_equal(found, np.round(values / 4095 * 255).astype(np.uint8)[..., None].repeat(3, axis=2))
    with pytest.raises(DataError, match=r"holds values up to 4095, and images of 10 bits \(--bit_depth\) hold 1023"):
        read_image(path, Reading(bit_depth=10))


def test_deep_colours_are_turned_too(tmp_path):
    """Which OpenCV reads, that leaves PNGs as they are stored."""
    values = np.arange(24, dtype=np.uint16).reshape(4, 6, 1).repeat(3, axis=2) * 100
    cv2.imwrite(str(tmp_path / "a.png"), np.rot90(values))
    content = (tmp_path / "a.png").read_bytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    (tmp_path / "a.png").write_bytes(content[:33] + chunk + content[33:])  # behind IHDR
    found = np.asarray(read_image(tmp_path / "a.png", Reading(bit_depth=12)))
    np.testing.assert_array_equal(found, np.round(values / 4095 * 255))


@pytest.mark.parametrize(("part", "words"), [("test", "the training images'"), ("train", "--bit_depth")])
def test_values_beyond_the_depth(tmp_path, part, words, capsys):
    data = deepen(make_mvtec(tmp_path / "source", ["bolt"]), tmp_path / "data", 10)
    path = next((data / "bolt" / part / "good").iterdir())
    cv2.imwrite(str(path), np.full((48, 48), 5000, np.uint16))
    options = ["--bit_depth", "10"] if part == "train" else []
    message = rf"^'{path}' holds values up to 5000, more than {words} 10 bits: give --bit_depth 14 or more$"
    with pytest.raises(DataError, match=message):
        run(tmp_path, *options, "mvtec", data)
    assert not (tmp_path / "results").exists()


def test_a_predicted_image_beyond_the_depth_has_an_error_row(tmp_path, capsys):
    data = deepen(make_mvtec(tmp_path / "source", ["bolt"]), tmp_path / "data", 10)
    model = run(tmp_path, "mvtec", data)
    cv2.imwrite(str(tmp_path / "bright.png"), np.full((48, 48), 1024, np.uint16))
    good = next((data / "bolt" / "test" / "good").iterdir())
    words = ["predict", model, tmp_path / "bright.png", good, "--out", tmp_path / "out"]
    assert main.main(list(map(str, words)), standalone_mode=False) == 1
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert "holds values up to 1024, and images of 10 bits" in table["error"][0]
    assert table["score"].notna().tolist() == [False, True]


def test_8_bit_images_are_opened_once_as_far_as_their_header(mvtec, tmp_path, monkeypatch):
    """Whatever is found of a class costs them nothing."""
    monkeypatch.setattr("experiment.plan.reading.largest_value", lambda path: pytest.fail("it was read for its depth"))
    assert json.loads((run(tmp_path, "-d", "bolt", "mvtec", mvtec) / "model.json").read_text())["reading"] == {
        "bit_depth": 16,
        "oriented": True,
        "background": "black",
    }


def test_a_reading_from_a_stranger_is_refused(tmp_path, mvtec):
    model = run(tmp_path, "-d", "bolt", "mvtec", mvtec)
    description = json.loads((model / "model.json").read_text())
    for bad in ({}, {**UNSAID, "bit_depth": 7}, {**UNSAID, "oriented": 1}, {**UNSAID, "background": "x"}):
        (model / "model.json").write_text(json.dumps({**description, "reading": bad}))
        with pytest.raises(DataError, match=r"model\.json' cannot be read as a model's description: reading is"):
            simplenet.load(model)


@pytest.mark.parametrize("workers", [0, 1])
def test_images_of_many_pixels_need_a_flag(tmp_path, workers, recwarn):
    """Above Pillow's limits, in this process, in readers, and as far as the header; no warning of Pillow's."""
    path = tmp_path / "scan.png"
    Image.new("1", (20000, 9001)).save(path)
    sample = Sample(path, (), False, "c", "good")
    message = (
        r"scan.png' is 20000 x 9001, 180\.0 megapixels, and at most 180\.0 are read: --max_pixels 180020000 allows it, "
        r"which takes about 0\.7 GiB \(4 bytes a pixel\) for each image read at once \(--num_workers\)$"
    )
    for reader in (
        lambda: check_headers([sample]),
        lambda: read_image(path),
        lambda: list(BatchLoader(ImageDataset([sample], ImageTransform(32, 32)), 1, workers)),
    ):
        with pytest.raises(DataError, match=message):
            reader()
    assert check_headers([sample], Reading(max_pixels=180020000))[0][:2] == (20000, 9001)
    Image.new("1", (10000, 9600)).save(path)  # where Pillow warns
    check_headers([sample])
    assert [str(one.message) for one in recwarn if "DecompressionBomb" in str(one.category)] == []


def test_max_pixels_of_runs_and_predict(tmp_path, mvtec, capfd):
    """A limit of a small image stands for that of a large one."""
    with pytest.raises(DataError, match=r"48 x 48, .*: --max_pixels 2304 allows it"):
        run(tmp_path, "--max_pixels", "2303", "-d", "bolt", "mvtec", mvtec)
    model = run(tmp_path, "--max_pixels", "2304", "-d", "bolt", "mvtec", mvtec)
    run(tmp_path, "--max_pixels", "2305", "-d", "bolt", "mvtec", mvtec)  # it decides no number: the run is continued
    path = next((mvtec / "bolt" / "test" / "good").iterdir())
    for limit, code in (("2303", 1), ("2304", 0)):
        words = ["predict", model, path, "--max_pixels", limit, "--out", tmp_path / "out", "--map", "none"]
        assert main.main(list(map(str, words)), standalone_mode=False) == code
        assert ("--max_pixels 2304 allows it" in (tmp_path / "out" / "predictions.csv").read_text()) == bool(code)


def test_masks_of_published_sets_have_a_limit_of_their_own(tmp_path, monkeypatch):
    import trees

    import datasets.folders

    trees.sdd2(tmp_path)
    monkeypatch.setattr(datasets.folders, "MAX_PIXELS", 1000)
    with pytest.raises(DataError, match=r"_GT\.png' is 36 x 36"):
        DATASETS["sdd2"].read_class(tmp_path, "surface")


def test_a_pointer_is_no_image(tmp_path):
    for text, words in (
        ("version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n", "Git LFS: git lfs pull"),
        ("/annex/objects/SHA256E-s3--1.png\n", "git-annex: git annex get"),
    ):
        (tmp_path / "a.png").write_text(text)
        with pytest.raises(DataError, match=re.escape(f"a.png' is no image but a pointer of {words} fetches it")):
            read_header(tmp_path / "a.png")
