"""Masks of every kind of file, defects on their way to the size of maps, and which files are whose mask."""

import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
import trees
from conftest import SMALL_DATA, SMALL_NET, make_mvtec
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter, features
from skimage.measure import label
from trees import mask, save, texture

import main
import metrics
from datasets import (
    DATASETS,
    FolderNames,
    ImageDataset,
    ImageTransform,
    Reading,
    Sample,
    Saturation,
    check_headers,
    folder_reader,
    read_defects,
    region_labels,
    remarks_on_masks,
)
from datasets.masks import read_mask
from datasets.regions import read_regions
from errors import DataError, UsageError

SIDE = 64
SHAPE = np.zeros((SIDE, SIDE), bool)
SHAPE[8:24, 10:18] = SHAPE[40:56, 30:38] = True  # 256 pixels in two regions
DEFECT = SHAPE[..., None]


def as_read(path, size=SIDE):
    """The mask [H, W] that a detector is held against, at full size."""
    image = path.with_name("image.png")
    save(image, np.zeros((size, size, 3), np.uint8))
    sample = Sample(image, (path,), True, "c", "d")
    check_headers([sample])
    return ImageDataset([sample], ImageTransform(size, size))[0][1].numpy()


def palette(path, colours, indices=SHAPE, **options):
    image = Image.fromarray(indices.astype(np.uint8), "P")
    image.putpalette(np.array(colours, np.uint8).tobytes())
    image.save(path, **options)


def alpha(path, colours, opacity):
    pixels = np.concatenate([np.broadcast_to(colours, (SIDE, SIDE, 3)), opacity.reshape(SIDE, SIDE, 1)], axis=2)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def by_opencv(path, values):
    assert cv2.imwrite(str(path), values)


RED_ON_WHITE = np.where(DEFECT, (255, 0, 0), (255, 255, 255))
KINDS = {
    "palette of two blacks": ("p.png", lambda path: palette(path, [(0, 0, 0), (0, 0, 0)])),
    "palette on grey": ("p.png", lambda path: palette(path, [(120, 120, 120), (200, 0, 0)])),
    "palette on white": ("p.gif", lambda path: palette(path, [(255, 255, 255), (0, 0, 9)])),
    "palette in TIFF": ("p.tif", lambda path: palette(path, [(9, 9, 9), (0, 0, 1)])),
    "palette in BMP": ("p.bmp", lambda path: palette(path, [(90, 0, 0), (0, 0, 1)])),
    "transparent palette": ("p.png", lambda path: palette(path, [(0, 0, 0), (1, 0, 0)], transparency=b"\xff\x00")),
    "1 bit": ("m.png", lambda path: Image.fromarray(SHAPE).save(path)),
    "1 bit in TIFF": ("m.tif", lambda path: Image.fromarray(SHAPE).save(path)),
    "(1, 0, 0)": ("m.png", lambda path: Image.fromarray((DEFECT * [1, 0, 0]).astype(np.uint8)).save(path)),
    "(0, 0, 1)": ("m.bmp", lambda path: Image.fromarray((DEFECT * [0, 0, 1]).astype(np.uint8)).save(path)),
    "16-bit colours": ("m.png", lambda path: by_opencv(path, (DEFECT * [0, 0, 1]).astype(np.uint16))),
    "16-bit colours in TIFF": ("m.tif", lambda path: by_opencv(path, (DEFECT * [0, 1, 0]).astype(np.uint16))),
    "16-bit greys": ("m.tif", lambda path: by_opencv(path, SHAPE.astype(np.uint16))),
    "floats": ("m.tif", lambda path: Image.fromarray(SHAPE.astype(np.float32)).save(path)),
    "small floats": ("m.tif", lambda path: Image.fromarray(SHAPE.astype(np.float32) / 1000).save(path)),
    "float colours": ("m.tif", lambda path: by_opencv(path, (DEFECT * [0, 0, 1]).astype(np.float32))),
    "doubles": ("m.tif", lambda path: by_opencv(path, SHAPE.astype(np.float64))),
    "alpha on white": ("a.png", lambda path: alpha(path, 255, SHAPE * 255)),
    "alpha on black": ("a.png", lambda path: alpha(path, 0, SHAPE * 255)),
    "alpha in WebP": ("a.webp", lambda path: alpha(path, 0, SHAPE * 255)),
    "16-bit alpha": ("a.png", lambda path: by_opencv(path, (DEFECT * [0, 0, 0, 1]).astype(np.uint16))),
    "grey and alpha": ("a.png", lambda path: Image.fromarray((DEFECT * [0, 9]).astype(np.uint8)).save(path)),
    "opaque colours": ("a.png", lambda path: alpha(path, DEFECT * [1, 0, 0], np.full(SHAPE.shape, 255))),
    "hidden colours": ("a.png", lambda path: alpha(path, RED_ON_WHITE, SHAPE * 255)),
    "clear colours": ("a.png", lambda path: alpha(path, DEFECT * [0, 7, 0], np.zeros(SHAPE.shape))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_masks_keep_their_shape(tmp_path, kind):
    name, write = KINDS[kind]
    write(tmp_path / name)
    np.testing.assert_array_equal(as_read(tmp_path / name), SHAPE)


GREY = Image.fromarray(SHAPE.astype(np.uint8) * 255)
RED = Image.fromarray((DEFECT * [255, 0, 0]).astype(np.uint8))


@pytest.mark.parametrize(
    ("name", "image", "options"),
    [
        *((f"{quality}.jpg", GREY, {"quality": quality}) for quality in (20, 50, 75, 95)),
        ("red.jpg", RED, {}),
        ("m.webp", GREY, {"quality": 60}),
        ("m.tif", GREY, {"compression": "jpeg", "quality": 50}),
        ("m.avif", GREY, {"quality": 5}),
        ("blurred.png", GREY.filter(ImageFilter.GaussianBlur(0.7)), {}),
        ("blurred.gif", GREY.filter(ImageFilter.GaussianBlur(0.7)), {}),
        ("bilinear.png", GREY.resize((2 * SIDE, 2 * SIDE), Image.Resampling.BILINEAR), {}),
        ("bicubic.png", GREY.resize((2 * SIDE, 2 * SIDE), Image.Resampling.BICUBIC), {}),
        ("lanczos.png", GREY.resize((256, 256), 0).resize((3 * SIDE, 3 * SIDE), Image.Resampling.LANCZOS), {}),
    ],
)
def test_lossy_and_smoothed_masks_do_not_grow(tmp_path, name, image, options):
    """As without compression: 256 pixels and 2 regions, of masks of another size in proportion."""
    if name.endswith("avif") and not features.check("avif"):
        pytest.skip("this Pillow writes no AVIF")
    image.save(tmp_path / name, **options)
    found = as_read(tmp_path / name, image.width)
    scale = (image.width / SIDE) ** 2
    assert found.sum() == pytest.approx(256 * scale, rel=0.05 if scale > 1 else 0.04)
    assert label(found, connectivity=2).max() == 2
    assert read_mask(tmp_path / name).doubt is None


@pytest.mark.parametrize("values", [(1, 1), (254, 255), (1, 255), (3, 12), (1, 2), (100, 255), (2, 60000)])
def test_labels_of_any_values_all_count(tmp_path, values):
    """Small and high values side by side, touching, in a 1-pixel line, and as a ramp over the whole image."""
    low, high = values
    pixels = np.zeros((SIDE, SIDE), np.uint8 if high < 256 else np.uint16)
    pixels[8:24, 10:18], pixels[8:24, 18:22], pixels[40:56, 30:38], pixels[60, 5:50] = low, high, high, low
    by_opencv(tmp_path / "m.png", pixels)
    np.testing.assert_array_equal(as_read(tmp_path / "m.png"), pixels > 0)
    by_opencv(tmp_path / "m.png", (np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE) + 1) * 15)
    assert as_read(tmp_path / "m.png").all()


def test_noise_that_cannot_be_told_from_labels_is_named(tmp_path):
    """A JPEG file that was saved again as PNG, and colours that nobody sees."""
    GREY.save(tmp_path / "m.jpg", quality=75)
    Image.open(tmp_path / "m.jpg").save(tmp_path / "m.png")
    assert "faint values around their defects" in read_mask(tmp_path / "m.png").doubt
    alpha(tmp_path / "m.png", DEFECT * [9, 0, 0], ~SHAPE * 255)
    found = read_mask(tmp_path / "m.png")
    assert not found.values.any()
    assert "only where they are transparent" in found.doubt
    for name in ("m.tif", "m.gif"):
        GREY.save(tmp_path / name, save_all=True, append_images=[GREY.transpose(Image.Transpose.ROTATE_90)])
        found = read_mask(tmp_path / name)
        np.testing.assert_array_equal(found.values > 0, SHAPE)
        assert "the first counts" in found.doubt


def test_what_a_smoothed_mask_shows_weakly_is_kept(tmp_path):
    """A thin scratch of a mask that was made smaller is never white."""
    large = np.zeros((256, 256), np.uint8)
    large[43:141, 43:141], large[180, 20:120] = 255, 255
    Image.fromarray(large).resize((SIDE, SIDE), Image.Resampling.BOX).save(tmp_path / "m.png")
    assert label(as_read(tmp_path / "m.png"), connectivity=2).max() == 2


def test_lossy_masks_without_contrast(tmp_path):
    """Black may be stored as 1 or 2; labels as small are refused, for they cannot be told from noise."""
    Image.new("L", (SIDE, SIDE), 2).save(tmp_path / "m.jpg")
    assert not as_read(tmp_path / "m.jpg").any()
    levels = np.zeros((SIDE, SIDE), np.uint8)
    levels[8:24, 10:18], levels[40:56, 30:38] = 255, 110
    Image.fromarray(levels).save(tmp_path / "m.jpg")
    assert read_mask(tmp_path / "m.jpg").doubt.endswith("below half of their range, which are left out as noise")
    Image.fromarray(SHAPE.astype(np.uint8) * 2).save(tmp_path / "m.jpg", quality=100)
    with pytest.raises(DataError, match=r"m\.jpg' is a lossy file of values up to .*: save masks as PNG"):
        as_read(tmp_path / "m.jpg")


@pytest.mark.parametrize("value", [-1, np.nan, np.inf])
def test_values_that_mean_nothing_are_refused(tmp_path, value):
    by_opencv(tmp_path / "m.tif", np.where(SHAPE, value, 0).astype(np.float32))
    with pytest.raises(DataError, match=r"m\.tif' holds values that are negative or not finite"):
        as_read(tmp_path / "m.tif")


def test_a_run_names_masks_that_may_mean_something_else(tmp_path, capsys, monkeypatch):
    """Of a grid they are read once, and named again by the next command of a process."""
    make_mvtec(tmp_path / "data", ["bolt"], test=5)
    masks = tmp_path / "data" / "bolt" / "ground_truth" / "crack"
    save(masks / "000_mask.png", np.zeros((48, 48), np.uint8))
    save(masks / "001_mask.png", np.zeros((48, 48), np.uint8))
    save(masks / "002_mask.png", np.full((48, 48), 255, np.uint8))
    palette(masks / "003_mask.png", [(255, 255, 255), (0, 0, 0)], np.eye(48))
    save(masks / "004_mask.png", mask(size=24, start=8))
    words = ["--results_path", str(tmp_path / "results"), "--grid", "dsc_hidden=8,9", *SMALL_NET, "dataset"]
    read = []

    def count(*words):
        read.append(words)
        return remarks_on_masks(*words)

    monkeypatch.setattr("experiment.plan.resolve.remarks_on_masks", count)
    for commands in (1, 2):
        main.main([*words, *SMALL_DATA, "mvtec", str(tmp_path / "data")], standalone_mode=False)
        assert len(read) == commands
        said = [line for line in capsys.readouterr().err.splitlines() if "bolt: masks that" in line]
        assert said == [
            "bolt: masks that have no defective pixel, though their images are anomalous: 2 "
            f"('{masks / '000_mask.png'}', '{masks / '001_mask.png'}')",
            f"bolt: masks that are defective everywhere: 1 ('{masks / '002_mask.png'}')",
            "bolt: masks that have black in their palette, but not as index 0, which is background whatever its "
            f"colour: 1 ('{masks / '003_mask.png'}')",
            f"bolt: masks that have another size than their images, and are resized: 1 ('{masks / '004_mask.png'}')",
        ]


def test_ordinary_masks_are_not_spoken_of(mvtec):
    samples = DATASETS["mvtec"].read_class(mvtec, "bolt")
    assert remarks_on_masks(samples.test, samples.doubts, Reading()) == []


def test_a_remark_counts_all_and_names_some(tmp_path):
    samples = []
    for i in range(5):
        path = save(tmp_path / f"{i}.png", np.zeros((999, 999), np.uint8))
        samples.append(Sample(path, (path,), True, "c", "d"))
    (line,) = remarks_on_masks(samples, {}, Reading())
    assert line.endswith(f": 5 ('{tmp_path / '0.png'}', '{tmp_path / '1.png'}', '{tmp_path / '2.png'}', ...)")
    for i in (1, 3):
        (tmp_path / f"{i}.png").write_bytes((tmp_path / f"{i}.png").read_bytes()[:500])
    with pytest.raises(DataError, match=r"^2 files cannot be used: '.*1\.png' cannot .*; '.*3\.png' cannot"):
        remarks_on_masks(samples, {}, Reading())


SMALL = mask() > 0
WHOLE = np.ones_like(SMALL)


@pytest.mark.parametrize(
    ("build", "name", "path"),
    [
        (trees.sdd, "sdd", "kos02/Part0_label"),
        (trees.sdd2, "sdd2", "train/10000_GT"),
        (trees.sdd2, "sdd2", "test/20000_GT"),
    ],
)
def test_the_label_is_that_of_the_mask_whatever_its_kind(tmp_path, build, name, path):
    """A normal image becomes anomalous by a dark palette; by a palette without index 0 it does so with a word."""
    build(tmp_path)
    reader, label_path = DATASETS[name], next(tmp_path.glob(f"{path}.*"))
    image = label_path.stem.replace("_label", "").replace("_GT", "")

    def read_again():
        samples = reader.read_class(tmp_path, reader.find_classes(tmp_path)[0])
        normal = {s.image_path.with_suffix("") for s in samples.train + samples.test if not s.anomalous}
        return label_path.with_name(image) not in normal, remarks_on_masks(samples.test, samples.doubts, Reading())

    assert read_again() == (False, [])
    label_path.unlink()
    palette(label_path.with_suffix(".png"), [(0, 0, 0), (0, 0, 0)], SMALL)
    assert read_again() == (True, [])
    palette(label_path.with_suffix(".png"), [(0, 0, 0), (0, 0, 0)], WHOLE)
    assert read_again() == (True, [f"masks that are defective everywhere: 1 ('{label_path.with_suffix('.png')}')"])


# Sizes


@pytest.mark.parametrize(
    ("image", "own", "expected"),
    [
        ((128, 96), (64, 48), True),
        ((1000, 751), (500, 376), True),
        ((1000, 751), (340, 255), True),
        ((48, 48), (200, 200), True),
        ((48, 48), (47, 48), False),
        ((128, 96), (96, 128), False),
        ((128, 96), (128, 95), False),
        ((128, 96), (64, 64), False),
    ],
)
def test_masks_of_another_size_need_the_same_aspect(tmp_path, image, own, expected):
    save(tmp_path / "i.png", np.zeros((*image[::-1], 3), np.uint8))
    pixels = np.zeros(own[::-1], np.uint8)
    pixels[: own[1] // 2] = 255
    sample = Sample(tmp_path / "i.png", (save(tmp_path / "m.png", pixels),), True, "c", "d")
    if not expected:
        with pytest.raises(DataError, match=rf"m\.png' is {own[0]} x {own[1]} pixels, but its image"):
            check_headers([sample])
        return
    check_headers([sample])
    found = ImageDataset([sample], ImageTransform(40, 40))[0][1]
    assert found[:19].all()
    assert not found[21:].any()


def test_saturation_is_counted_in_pixels_of_the_image(tmp_path):
    save(tmp_path / "i.png", np.zeros((40, 40, 3), np.uint8))
    sample = Sample(tmp_path / "i.png", (save(tmp_path / "m.png", np.full((20, 20), 1, np.uint8)),), True, "c", "d")
    (defect,) = read_defects([sample], {1: Saturation(100, False)}, ImageTransform(20, 20))
    assert defect.saturation_area == 25


# Regions


def sample_of(tmp_path, pixels):
    image = save(tmp_path / "i.png", np.zeros((*pixels.shape, 3), np.uint8))
    return Sample(image, (save(tmp_path / "m.png", pixels.astype(np.uint8) * 255),), True, "c", "d")


def test_a_thin_scratch_is_one_region_and_spots_stay(tmp_path):
    pixels = np.zeros((512, 512), np.uint8)
    cv2.line(pixels, (30, 37), (470, 283), 1, 2)
    cv2.line(pixels, (30, 47), (470, 293), 1, 2)  # nearer than a pixel of the map is wide
    for i in range(20):
        pixels[400 + i // 4 * 22 : 403 + i // 4 * 22, 13 + i * 23 : 16 + i * 23] = 1
    full = label(pixels, connectivity=2).max()
    assert full == 22
    sample, transform = sample_of(tmp_path, pixels), ImageTransform(64, 64)
    regions = read_regions(sample, transform)
    assert len(np.unique(regions)) == 1 + full
    plain = transform.nearest(Image.fromarray(pixels)) > 0
    assert (regions > 0)[plain].all()  # what was there stays
    maps = (regions == 1).astype(np.float32)[None]
    labels = region_labels([sample], transform)
    assert metrics.pro(regions[None] > 0, maps, 1.0, labels) == pytest.approx(0.5 + 0.5 / 22, abs=1e-6)
    found = metrics.pixel_metrics(regions[None] > 0, maps, 1.0, labels)
    assert found["pro"] == metrics.pro(regions[None] > 0, maps, 1.0, labels)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    share=st.sampled_from([0.002, 0.02, 0.2]),
    size=st.tuples(st.integers(20, 90), st.integers(20, 90)),
    mode=st.sampled_from(["aspect", "square"]),
)
def test_no_region_that_is_seen_is_lost(tmp_path_factory, seed, share, size, mode):
    folder = tmp_path_factory.mktemp("regions")
    pixels = np.random.default_rng(seed).random(size[::-1]) < share
    transform = ImageTransform(18, 16, resize_mode=mode)
    regions = read_regions(sample_of(folder, pixels), transform)
    full = label(pixels, connectivity=2)
    left, top, right, bottom = transform.window(*size)
    seen = np.unique(full[top:bottom, left:right])
    kept = np.setdiff1d(np.unique(regions), [0])
    nearest = transform.nearest(Image.fromarray(full.astype(np.int32)))
    assert len(kept) >= min(np.count_nonzero(seen), 256)
    assert len(kept) <= np.count_nonzero(np.union1d(seen, np.unique(nearest)))
    assert (regions > 0)[nearest > 0].all()
    shutil.rmtree(folder)


def test_regions_that_touch_at_the_size_of_the_map_stay_two(tmp_path):
    pixels = np.zeros((128, 128), bool)
    pixels[20:60, 20:64] = pixels[20:60, 65:100] = True
    sample, transform = sample_of(tmp_path, pixels), ImageTransform(32, 32)
    masks = read_regions(sample, transform)[None] > 0
    assert label(masks[0], connectivity=2).max() == 1
    labels = region_labels([sample, sample], transform)
    assert len(np.unique(labels)) == 4
    maps = np.zeros((1, 32, 32))
    maps[0, :, :16] = masks[0, :, :16]
    assert metrics.pro(masks, maps, 1.0, labels[: masks.sum()]) == pytest.approx(0.75, abs=0.01)


def test_masks_of_an_image_make_one_region_where_they_touch(tmp_path):
    both = np.zeros((2, 64, 64), bool)
    both[0, 8:20, 8:20] = both[1, 16:30, 16:30] = True
    one = sample_of(tmp_path, both[0])
    half = save(tmp_path / "half.png", both[1][::2, ::2].astype(np.uint8))
    for second in (save(tmp_path / "n.png", both[1].astype(np.uint8)), half):
        sample = Sample(one.image_path, (*one.mask_paths, second), True, "c", "d")
        regions = read_regions(sample, ImageTransform(64, 64))
        np.testing.assert_array_equal(regions > 0, both.any(axis=0))
        assert regions.max() == 1


def test_a_small_defect_is_not_lost_to_spro(tmp_path):
    spot = np.zeros((512, 512), bool)
    spot[101:104, 101:104] = True
    image = save(tmp_path / "i.png", np.zeros((512, 512, 3), np.uint8))
    sample = Sample(image, (save(tmp_path / "m.png", spot.astype(np.uint8)),), True, "c", "d")
    (defect,) = read_defects([sample], {1: Saturation(1, True)}, ImageTransform(32, 32))
    assert (defect.mask.sum(), defect.saturation_area) == (1, 1)
    assert defect.mask[6, 6]


def test_given_regions_are_what_pro_averages():
    golden = np.zeros((3, 8, 8), bool)
    golden[0, 1:4, 1:4] = golden[0, 6, 6] = golden[2, 2:5, 0:3] = True
    maps = np.random.default_rng(0).random(golden.shape)
    labels = np.concatenate([label(one, connectivity=2)[one] + 10 * i for i, one in enumerate(golden)])
    found = metrics.pixel_metrics(golden, maps, regions=labels)
    assert found == pytest.approx(metrics.pixel_metrics(golden, maps), abs=1e-12)
    merged = np.zeros_like(labels)
    assert metrics.pro(golden, maps, 1.0, merged) == pytest.approx(metrics.pixel_metrics(golden, maps, 1.0)["auroc"])
    for wrong in (labels[:-1], labels.astype(float), np.zeros(golden.shape, int)):
        with pytest.raises(ValueError, match="one for every defective pixel"):
            metrics.pro(golden, maps, regions=wrong)


def test_a_run_counts_regions_of_full_size_and_test_repeats_it(tmp_path):
    """Of a scratch that falls apart at the size of the maps; with and without a feature bank, and by --test."""
    make_mvtec(tmp_path / "data", ["bolt"], size=256)
    pixels = np.zeros((256, 256), np.uint8)
    cv2.line(pixels, (120, 31), (230, 150), 255, 1)
    pixels[:, :90] = 255
    for i in range(2):
        save(tmp_path / "data" / "bolt" / "ground_truth" / "crack" / f"{i:03}_mask.png", pixels)
    found = []
    for name, bank in (("kept", "host"), ("read", "off")):
        words = ["--results_path", str(tmp_path), "--run_name", name, "--feature_bank", bank]
        end = [*SMALL_NET, "--meta_epochs", "1", "dataset", *SMALL_DATA, "mvtec", str(tmp_path / "data")]
        main.main([*words, *end], standalone_mode=False)
        table = tmp_path / "project" / "group" / name / "results.csv"
        found.append(table.read_bytes())
        main.main([*words, "--test", *end], standalone_mode=False)
        found.append(table.read_bytes())
    assert len(set(found)) == 1
    samples = DATASETS["mvtec"].read_class(tmp_path / "data", "bolt").test
    transform = ImageTransform(40, 32)
    masks = np.stack([read_regions(sample, transform) > 0 for sample in samples])
    assert label(masks[0], connectivity=2).max() > 2
    assert len(np.unique(region_labels(samples, transform))) == 4


# Whose mask a file is


@pytest.fixture
def part(tmp_path):
    """Images in folders `ok` and `hole`, without masks."""
    for i in range(3):
        save(tmp_path / "part" / "train" / "ok" / f"{i}.png", texture(i))
        save(tmp_path / "part" / "test" / "hole" / f"{i}.png", texture(3 + i))
    save(tmp_path / "part" / "test" / "ok" / "0.png", texture(9))
    return tmp_path / "part"


def read(part, **names):
    samples = folder_reader(FolderNames(**names)).read_class(part, part.name)
    return {
        "train": [s.image_path.relative_to(part).as_posix() for s in samples.train],
        "normal": [s.image_path.relative_to(part).as_posix() for s in samples.test if not s.anomalous],
        "defects": {
            s.image_path.relative_to(part / "test").as_posix(): [m.relative_to(part).as_posix() for m in s.mask_paths]
            for s in samples.test
            if s.anomalous
        },
    }


HOLES = {f"hole/{i}.png": [] for i in range(3)}


def test_the_test_folder_of_the_training_folders_name_is_normal(part):
    found = read(part, normal_dir="train/ok")
    assert found == {"train": [f"train/ok/{i}.png" for i in range(3)], "normal": ["test/ok/0.png"], "defects": HOLES}
    (part / "test" / "ok").rename(part / "test" / "OK")
    assert read(part, normal_dir="train/ok")["normal"] == ["test/OK/0.png"]


def test_what_is_called_normal_is_not_tested_on_as_a_defect(part):
    (part / "train" / "ok").rename(part / "train" / "good")
    with pytest.raises(UsageError, match=r"test/ok' is called as normal .* --normal_test_dir test/ok, or --abnorm"):
        read(part)
    assert read(part, normal_test_dir="test/ok")["defects"] == HOLES
    assert len(read(part, abnormal_dir=("test/hole", "test/ok"))["defects"]) == 4
    (part / "train" / "good").rename(part / "train" / "ok")
    save(part / "test" / "good" / "0.png", texture(8))
    with pytest.raises(UsageError, match=r"test/good' and '.*test/ok' may both be normal: give --normal_test_dir"):
        read(part, normal_dir="train/ok")
    assert read(part, normal_dir="train/ok", abnormal_dir=("test/hole",))["normal"] == ["test/good/0.png"]


@pytest.mark.parametrize("name", ["{}_GT.png", "{}_mask.bmp", "{}_gt.tif", "{}_label.png"])
def test_masks_beside_images_are_their_masks(part, name):
    for i in range(3):
        save(part / "test" / "hole" / name.format(i), mask())
    found = read(part, normal_dir="train/ok")
    assert found["defects"] == {f"hole/{i}.png": [f"test/hole/{name.format(i)}"] for i in range(3)}
    assert read(part, normal_dir="train/ok", mask_dir="")["defects"] == HOLES
    save(part / "train" / "ok" / name.format(1), mask(0))
    save(part / "test" / "ok" / name.format(0), mask(0))
    assert {k: found[k] for k in ("train", "normal")} == {
        k: v for k, v in read(part, normal_dir="train/ok").items() if k != "defects"
    }
    save(part / "train" / "ok" / name.format(1), mask())
    with pytest.raises(DataError, match=r"ok/1\.png' lies among normal images, but its mask '.*' has defective pixels"):
        read(part, normal_dir="train/ok")


def test_masks_beside_some_images_only_are_refused(part):
    save(part / "test" / "hole" / "1_GT.png", mask())
    with pytest.raises(DataError, match=r"no mask for '.*hole/0\.png' and 1 more"):
        read(part, normal_dir="train/ok")
    save(part / "test" / "hole" / "7_mask.png", mask())
    with pytest.raises(DataError, match=r"7_mask\.png' is called as the mask of an image that is not beside it"):
        read(part, normal_dir="train/ok")


def test_masks_among_images_of_published_layouts_are_refused(tmp_path):
    make_mvtec(tmp_path, ["bolt"])
    for part in ("train/good", "test/good", "test/crack"):
        path = save(tmp_path / "bolt" / part / "000_mask.png", mask(0, size=48))
        with pytest.raises(DataError, match=r"000_mask\.png' is named as the mask of '000\.png': expected in ground_"):
            DATASETS["mvtec"].read_class(tmp_path, "bolt")
        path.unlink()


def copied(path, name):
    shutil.copy(path, path.with_name(name))


MASKS, IMAGES = "are both the mask of one image: remove or rename", "would share one mask: remove or rename one"
CRACK = "bolt/{}/crack/"


@pytest.mark.parametrize(
    ("name", "of", "copy", "words"),
    [
        ("mvtec", CRACK.format("ground_truth") + "000_mask.png", "000_mask.tif", MASKS),
        ("mvtec", CRACK.format("ground_truth") + "000_mask.png", "000.png", MASKS),
        ("mvtec", CRACK.format("test") + "000.png", "000.jpg", IMAGES),
        ("folder", CRACK.format("ground_truth") + "000_mask.png", "000_mask.tif", MASKS),
        ("folder", CRACK.format("ground_truth") + "000_mask.png", "000.png", MASKS),
        ("folder", CRACK.format("test") + "000.png", "000_GT.png", "are both the mask of one image: remove one"),
        ("folder", CRACK.format("test") + "000.png", "000.jpg", r"000\.png': rename one of them"),
        ("mvtec_loco", "breakfast_box/test/logical_anomalies/000.png", "000.bmp", IMAGES),
        ("mvtec_loco", "breakfast_box/ground_truth/logical_anomalies/000/000.png", "000.tif", "the mask of one defect"),
        ("sdd", "kos03/Part1_label.bmp", "Part1_label.png", MASKS),
        ("sdd", "kos03/Part1.jpg", "Part1.png", IMAGES),
        ("sdd2", "test/20001_GT.png", "20001_GT.bmp", "have one name: remove or rename one"),
        ("sdd2", "test/20001.png", "20001.jpg", "have one name: remove or rename one"),
        ("mtd", "MT_Crack/Imgs/exp2_num_1.png", "exp2_num_1.PNG", MASKS),
        ("mtd", "MT_Crack/Imgs/exp2_num_1.jpg", "exp2_num_1.JPG", IMAGES),
        ("visa", "split_csv/1cls.csv", "", IMAGES),
    ],
)
def test_two_files_for_one_are_named(tmp_path, name, of, copy, words):
    if name in ("mvtec", "folder"):
        make_mvtec(tmp_path, ["bolt"])
    else:
        getattr(trees, name)(tmp_path)
    path = tmp_path / of
    if copy:
        copied(path, copy)
    else:
        path.write_text(path.read_text().replace("Masks/Anomaly/001", "Masks/Anomaly/000"))
    reader = DATASETS[name]
    with pytest.raises(DataError, match=words):
        reader.read_class(tmp_path, reader.find_classes(tmp_path)[0])


def test_tables_of_masks_beside_images(tmp_path, part):
    """A run over masks beside images has pixel metrics, and scores no mask."""
    for i in range(3):
        save(part / "test" / "hole" / f"{i}_GT.png", mask())
    words = ["--results_path", str(tmp_path), *SMALL_NET, "--meta_epochs", "1", "dataset", *SMALL_DATA]
    main.main([*words, "--normal_dir", "train/ok", "folder", str(part)], standalone_mode=False)
    run = tmp_path / "project" / "group" / "test"
    assert pd.read_csv(run / "results.csv", index_col="class").loc["folder_part", "pixel_auroc"] > 0
    assert len(pd.read_csv(next(run.rglob("predictions.csv")))) == 4
