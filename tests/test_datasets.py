"""Datasets: folders read into samples, samples into tensors, and what is said of folders that are not right."""

import shutil
import sys
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import make_mvtec
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, UnidentifiedImageError
from torchvision import transforms

import metrics
from datasets import (
    DATASETS,
    BatchLoader,
    ImageDataset,
    ImageTransform,
    RandomTransform,
    Sample,
    Saturation,
    Shuffled,
    check_headers,
    read_defects,
    reader_count,
    split,
)
from datasets.decode import read_image
from datasets.masks import read_mask
from errors import DataError

MVTEC, ELPV = DATASETS["mvtec"], DATASETS["elpv"]


def test_mvtec_samples(tmp_path):
    make_mvtec(tmp_path, ["bolt"])
    bolt = tmp_path / "bolt"
    (bolt / "test" / "crack" / "000.png").rename(bolt / "test" / "crack" / "000.PNG")
    for junk in ("train/good/Thumbs.db", "train/good/.hidden.png", "test/good/notes.txt", "test/readme.md"):
        (bolt / junk).write_bytes(b"junk")
    (bolt / "test" / ".cache").mkdir()
    (bolt / "train" / "good" / "folder.png").mkdir()
    (tmp_path / "licenses").mkdir()
    assert MVTEC.find_classes(tmp_path) == ["bolt"]
    samples = MVTEC.read_class(tmp_path, "bolt")
    assert [s.image_path.name for s in samples.train] == ["000.png", "001.png", "002.png", "003.png"]
    assert all(not s.anomalous and s.mask_paths == () and s.defect_type == "good" for s in samples.train)
    assert [(s.defect_type, s.image_path.name, s.anomalous) for s in samples.test] == [
        ("crack", "000.PNG", True),
        ("crack", "001.png", True),
        ("good", "000.png", False),
        ("good", "001.png", False),
    ]
    assert samples.test[1].mask_paths == (bolt / "ground_truth" / "crack" / "001_mask.png",)
    assert samples.test[1].class_name == "bolt"


def test_elpv_split():
    root = ELPV.default_root()
    assert ELPV.find_classes(root) == ["mono", "poly"]
    for name, counts in (("mono", (470, 118, 313)), ("poly", (736, 184, 402))):
        samples = ELPV.read_class(root, name)
        normal = [s for s in samples.test if not s.anomalous]
        assert (len(samples.train), len(normal), len(samples.test) - len(normal)) == counts
        assert {s.defect_type for s in samples.test if s.anomalous} == {"defect"}
        assert not {s.image_path for s in samples.train} & {s.image_path for s in samples.test}
    labels = [line.split() for line in (root / "labels.csv").read_text().splitlines()]
    mono = [root / path for path, probability, kind in labels if kind == "mono" and float(probability) == 0]
    samples = ELPV.read_class(root, "mono")
    assert [s.image_path for s in samples.test if not s.anomalous] == mono[::5]


def test_transform_equals_torchvisions():
    """The original's evaluation transform: Resize, CenterCrop, ToTensor, Normalize."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (50, 70, 3), dtype=np.uint8))
    original = transforms.Compose(
        [
            transforms.Resize(40),
            transforms.CenterCrop(32),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    torch.testing.assert_close(ImageTransform(40, 32).image(image), original(image))


def test_masks_follow_the_image_and_stay_binary():
    pixels = np.zeros((50, 70), np.uint8)
    pixels[20:30, 30:40] = 1
    found = torch.from_numpy(ImageTransform(40, 32).nearest(Image.fromarray(pixels)) > 0)
    assert found.dtype == torch.bool
    image = ImageTransform(40, 32).image(Image.fromarray(pixels * 255).convert("RGB"))[0]
    bright = (image - image.min()) / (image.max() - image.min()) > 0.5
    assert (found ^ bright).sum() <= 16  # half a pixel along the border
    assert found.sum() == pytest.approx(100 * (40 / 50) ** 2, abs=20)


@pytest.mark.parametrize(
    "changes",
    [
        {"rotate_degrees": 40.0},
        {"translate": 0.3},
        {"scale": 0.5},
        {"brightness": 0.8},
        {"contrast": 0.8},
        {"saturation": 0.8},
        {"gray": 1.0},
        {"hflip": 1.0},
        {"vflip": 1.0},
    ],
)
def test_every_random_change_changes_the_image(changes):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    plain = ImageTransform(32, 32).image(image)
    torch.manual_seed(0)
    changed = ImageTransform(32, 32, RandomTransform(**changes)).image(image)
    assert not torch.equal(plain, changed)
    if changes in ({"hflip": 1.0}, {"vflip": 1.0}):
        torch.testing.assert_close(changed, plain.flip(-1 if "hflip" in changes else -2))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches(mvtec, workers):
    samples = MVTEC.read_class(mvtec, "bolt")
    dataset = ImageDataset(samples.test, ImageTransform(40, 32))
    loader = BatchLoader(dataset, 3, workers)
    assert len(loader) == 2
    for _ in range(2):
        first, second = loader
        assert first.images.shape == (3, 3, 32, 32)
        assert second.masks.shape == (1, 32, 32)
        assert [bool(mask.any()) for mask in first.masks] == [True, True, False]
    orders = [[b.images for b in BatchLoader(dataset, 4, workers, Shuffled(4, seed))] for seed in (1, 1)]
    assert torch.equal(orders[0][0], orders[1][0])
    shuffled = BatchLoader(ImageDataset(samples.train, ImageTransform(40, 32)), 4, workers, Shuffled(4, 0))
    passes = [next(iter(shuffled)).images for _ in range(6)]
    assert any(not torch.equal(passes[0], other) for other in passes[1:])


def test_as_many_read_as_there_are_cores(mvtec, monkeypatch):
    """Up to 16, shared by the jobs at once, and no more than there are batches; what is asked for stands."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(40), raising=False)
    assert [reader_count(None), reader_count(None, 8), reader_count(None, 99)] == [16, 5, 1]
    assert [reader_count(0, 8), reader_count(100)] == [0, 100]
    dataset = ImageDataset(MVTEC.read_class(mvtec, "bolt").test, ImageTransform(40, 32))
    assert [BatchLoader(dataset, size, None)._loader.num_workers for size in (4, 3, 1)] == [1, 2, 4]
    assert BatchLoader(dataset, 1)._loader.num_workers == 0


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        Image.fromarray(content).save(path)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_image_is_named(tmp_path, workers):
    make_mvtec(tmp_path, ["bolt"])
    path = tmp_path / "bolt" / "train" / "good" / "002.png"
    path.write_bytes(path.read_bytes()[:400])
    samples = MVTEC.read_class(tmp_path, "bolt")
    with pytest.raises(DataError, match=r"^'.*002\.png' cannot be read: [^\n]*$"):
        list(BatchLoader(ImageDataset(samples.train, ImageTransform(40, 32)), 2, workers))


class Failing(ImageDataset):
    """Every item reports an error as a thread of a reader would."""

    def read(self, index):
        for error in (ConnectionResetError("the parent is gone"), ValueError("a true fault")):
            sys.excepthook(type(error), error, None)
        return super().read(index)


def test_a_reader_that_is_left_says_nothing(mvtec, capfd):
    """A run that ends while a reader hands over a batch resets its connection; other faults are shown."""
    list(BatchLoader(Failing(MVTEC.read_class(mvtec, "bolt").test, ImageTransform(40, 32)), 2, 1))
    errors = capfd.readouterr().err
    assert "a true fault" in errors
    assert "the parent is gone" not in errors


DEEP = (np.arange(64, dtype=np.uint16) * 1040).reshape(8, 8)  # 0 to 65520


@pytest.mark.parametrize("ending", ["png", "tif", "pgm"])
def test_16_bits_are_scaled_over_their_full_range(tmp_path, ending):
    path = tmp_path / f"deep.{ending}"
    cv2.imwrite(str(path), DEEP)
    check_headers([Sample(path, (path,), True, "c", "d")])
    found = np.asarray(read_image(path))
    np.testing.assert_array_equal(found, np.round(DEEP / 257).astype(np.uint8)[..., None].repeat(3, axis=2))
    np.testing.assert_array_equal(read_mask(path).values, DEEP)


def test_16_bits_of_another_byte_order_and_width(tmp_path):
    Image.fromarray(DEEP.astype(">u2")).save(tmp_path / "big.tif")
    Image.fromarray(DEEP.astype(np.int32)).save(tmp_path / "wide.tif")
    for name in ("big.tif", "wide.tif"):
        np.testing.assert_array_equal(np.asarray(read_image(tmp_path / name))[..., 1], np.round(DEEP / 257))


@pytest.mark.parametrize("by_opencv", [False, True])
def test_16_bit_colours(tmp_path, monkeypatch, by_opencv):
    path = tmp_path / "colours.tif"
    colours = np.stack([DEEP, DEEP // 2, DEEP // 4], axis=2)
    cv2.imwrite(str(path), colours[..., ::-1])
    if by_opencv:

        def unknown(path: Path) -> None:
            raise UnidentifiedImageError("unknown")

        monkeypatch.setattr(Image, "open", unknown)
    sample = Sample(path, (path,), True, "c", "d")
    check_headers([sample])
    np.testing.assert_allclose(np.asarray(read_image(path)), colours / 257, atol=0.5 if by_opencv else 1)
    assert ImageDataset([sample], ImageTransform(8, 8))[0][1][1:].all()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "CMYK", "L", "LA"])
def test_every_kind_of_8_bit_image_is_read_as_rgb(tmp_path, mode):
    image = Image.new("RGB", (6, 4), (204, 102, 0)).convert(mode)
    path = tmp_path / f"image.{'tif' if mode == 'CMYK' else 'png'}"
    image.save(path)
    check_headers([Sample(path, (), False, "c", "good")])
    grey = Image.new("RGB", (1, 1), (204, 102, 0)).convert("L").getpixel((0, 0))
    expected = (grey,) * 3 if mode in ("L", "LA") else (204, 102, 0)
    np.testing.assert_allclose(np.asarray(read_image(path))[2, 3], expected, atol=1)


@pytest.mark.parametrize(
    ("values", "depth"),
    [
        (DEEP.astype(np.float32), "floating-point"),
        (np.stack([DEEP.astype(np.float32)] * 3, axis=2), "float32"),
        (DEEP.astype(np.int32) * 9, "32-bit"),
        (DEEP.astype(np.int32) - 1, "32-bit"),
    ],
)
def test_deeper_images_are_refused(tmp_path, capfd, values, depth):
    path = tmp_path / "deep.tif"
    cv2.imwrite(str(path), values) if values.ndim == 3 else Image.fromarray(values).save(path)
    for read in (read_image, read_mask)[: 1 if values.dtype == np.float32 else 2]:
        with pytest.raises(DataError, match=f"deep.tif' holds {depth} values: 8- or 16-bit images are expected"):
            read(path)
    if values.dtype == np.float32:
        with pytest.raises(DataError, match=depth):
            check_headers([Sample(path, (), False, "c", "good")])
    assert capfd.readouterr().err == ""


def test_headers_are_all_that_is_read(tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:100])
    check_headers([Sample(path, (path,), True, "c", "d")])
    with pytest.raises(DataError, match="cannot be read"):
        read_image(path)


def test_masks_of_an_image_are_united(tmp_path):
    areas = [(slice(4, 8), slice(4, 8)), (slice(6, 20), slice(6, 8))]
    expected = np.zeros((32, 32), bool)
    for i, area in enumerate(areas):
        mask = np.zeros((32, 32), np.uint16 if i else np.uint8)
        mask[area] = 1  # of 16 bits it would scale to 0
        expected[area] = True
        cv2.imwrite(str(tmp_path / f"{i}.png"), mask)
    write(tmp_path / "image.png", np.zeros((32, 32, 3), np.uint8))
    sample = Sample(tmp_path / "image.png", (tmp_path / "0.png", tmp_path / "1.png"), True, "c", "d")
    check_headers([sample])
    np.testing.assert_array_equal(ImageDataset([sample], ImageTransform(32, 32))[0][1], expected)
    write(tmp_path / "1.png", np.zeros((32, 30), np.uint8))
    with pytest.raises(DataError, match=r"1\.png' is 30 x 32 pixels"):
        check_headers([sample])


def test_square_crops_nothing_away():
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, :8] = 255  # cut off by a crop
    for mode, seen in (("aspect", 0), ("square", 32 * 32 // 10)):
        transform = ImageTransform(32, 32, resize_mode=mode)
        mask = torch.from_numpy(transform.nearest(Image.fromarray(pixels[..., 0])) > 0)
        assert mask.shape == (32, 32)
        assert mask.dtype == torch.bool
        assert abs(int(mask.sum()) - seen) <= 32
        image = transform.image(Image.fromarray(pixels))[0]
        assert image.shape == (32, 32)
        assert bool((image > 0).any()) == (mode == "square")


@pytest.fixture
def marked(tmp_path):
    """Two anomalous images of 80 x 40 with masks of 1 (centre), 2 (left edge, cut off by a crop) and 3 (centre)."""
    areas = {"1": (slice(10, 30), slice(35, 45)), "2": (slice(0, 40), slice(0, 4)), "3": (slice(20, 22), slice(40, 42))}
    samples = []
    for name, values in (("a", "12"), ("b", "3")):
        write(tmp_path / f"{name}.png", np.zeros((40, 80, 3), np.uint8))
        for value in values:
            mask = np.zeros((40, 80), np.uint8)
            mask[areas[value]] = int(value)
            write(tmp_path / name / f"{value}.png", mask)
        masks = tuple(tmp_path / name / f"{value}.png" for value in values)
        samples.append(Sample(tmp_path / f"{name}.png", masks, True, "c", "d"))
    return samples


def test_saturated_areas(marked):
    rules = {1: Saturation(50, False), 2: Saturation(0.5, True), 3: Saturation(50, False)}
    plain = read_defects(marked, rules, ImageTransform(40, 40))
    assert [(i, int(mask.sum()), area) for i, mask, area in plain] == [(0, 200, 50), (1, 4, 4)]  # 2 is cropped out
    assert plain[0][1].dtype == bool
    square = read_defects(marked, rules, ImageTransform(40, 40, resize_mode="square"))
    assert [(i, int(mask.sum()), area) for i, mask, area in square] == [(0, 100, 25), (0, 80, 40), (1, 2, 2)]
    half = read_defects(marked, rules, ImageTransform(20, 20))
    assert [(i, int(mask.sum()), area) for i, mask, area in half] == [(0, 50, 12.5), (1, 1, 1)]
    maps = np.zeros((2, 40, 40), np.float32)
    maps[0][np.flatnonzero(plain[0][1])[:50] // 40, np.flatnonzero(plain[0][1])[:50] % 40] = 1
    assert metrics.spro(plain, maps) == pytest.approx(0.5 + 0.5 * 0.3 / 2)  # one is found, the other with all pixels


def test_area_scale_is_torchvisions():
    for size in ((80, 41), (33, 50), (40, 40)):
        resized = transforms.functional.resize(Image.new("L", size), 37).size
        assert ImageTransform(37, 32).area_scale(*size) == resized[0] * resized[1] / (size[0] * size[1])


def test_a_mask_without_a_rule_is_named(marked):
    with pytest.raises(
        DataError, match=r"b/3\.png' has pixel values 3: expected one that defects_config\.json defines"
    ):
        read_defects(marked, {1: Saturation(1, True), 2: Saturation(1, True)}, ImageTransform(40, 40))
    write(marked[1].mask_paths[0], np.tile(np.arange(80, dtype=np.uint8) % 3, (40, 1)))
    with pytest.raises(DataError, match="pixel values 1, 2: expected one"):
        read_defects(marked[1:], {1: Saturation(1, True), 2: Saturation(1, True)}, ImageTransform(40, 40))


def test_a_defect_that_is_cropped_out_is_no_region(marked):
    cropped = Sample(marked[0].image_path, marked[0].mask_paths[1:], True, "c", "d")
    _, masks = next(iter(BatchLoader(ImageDataset([cropped, marked[1]], ImageTransform(40, 40)), 2)))
    assert [bool(mask.any()) for mask in masks] == [False, True]
    maps = np.zeros((2, 40, 40), np.float32)
    maps[1] = masks[1]
    assert cropped.anomalous  # its image is still to be found
    assert metrics.pixel_metrics(masks.numpy(), maps)["pro"] == 1


def no_train(root: Path) -> None:
    shutil.rmtree(root / "bolt" / "train" / "good")


def empty_train(root: Path) -> None:
    for path in (root / "bolt" / "train" / "good").iterdir():
        path.unlink()


def no_test(root: Path) -> None:
    shutil.rmtree(root / "bolt" / "test")


def empty_test(root: Path) -> None:
    for path in (root / "bolt" / "test").rglob("*.png"):
        path.unlink()


def no_mask(root: Path) -> None:
    (root / "bolt" / "ground_truth" / "crack" / "001_mask.png").unlink()


def no_masks(root: Path) -> None:
    shutil.rmtree(root / "bolt" / "ground_truth")


def other_mask_size(root: Path) -> None:
    write(root / "bolt" / "ground_truth" / "crack" / "000_mask.png", np.zeros((20, 30), np.uint8))


def no_image(root: Path) -> None:
    write(root / "bolt" / "train" / "good" / "001.png", b"this is text")


def zero_bytes(root: Path) -> None:
    for i in range(3):
        write(root / "bolt" / "test" / "good" / f"{i:03}.png", b"")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (no_train, r"no folder '.*bolt/train/good': expected CLASS/train/good"),
        (empty_train, r"no images in '.*bolt/train/good'"),
        (no_test, r"no folder '.*bolt/test'"),
        (empty_test, r"no images in '.*bolt/test'"),
        (no_mask, r"no mask for '.*crack/001\.png': expected '.*crack/001_mask\.png'"),
        (no_masks, r"no mask for '.*crack/000\.png' and 1 more"),
        (other_mask_size, r"mask '.*000_mask\.png' is 30 x 20 pixels, but its image .* is 48 x 48"),
        (no_image, r"'.*train/good/001\.png' is not an image"),
        (
            zero_bytes,
            r"^3 files cannot be used: '.*good/000\.png' is not an image.*; '.*good/001\.png'.*; '.*good/002\.png'",
        ),
    ],
)
def test_mvtec_errors_name_the_file(tmp_path, spoil, words):
    make_mvtec(tmp_path, ["bolt"])
    spoil(tmp_path)
    with pytest.raises(DataError, match=words):
        samples = MVTEC.read_class(tmp_path, "bolt")
        check_headers(samples.train + samples.test)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (None, r"no '.*labels\.csv'"),
        ("images/a.png 0.0\n", r"labels\.csv' line 1: expected 'PATH PROBABILITY KIND'"),
        ("images/a.png x mono\n", "line 1"),
        ("images/a.png 0.0 mono\nimages/b.png 1.0 mono\n", "no normal cells of class 'mono'"),
        ("".join(f"images/{i}.png 0.0 mono\n" for i in range(6)), "which does not exist"),
    ],
)
def test_elpv_errors_name_the_line(tmp_path, labels, words):
    if labels is not None:
        (tmp_path / "labels.csv").write_text(labels)
    with pytest.raises(DataError, match=words):
        ELPV.read_class(tmp_path, "mono")


@given(st.integers(1, 300), st.floats(0.01, 1))
def test_images_are_held_out_evenly(count, share):
    samples = list(range(count))
    if count * share < 1:
        with pytest.raises(DataError, match=f"--train_val_split {share} leaves none of {count}"):
            split(samples, share)
        return
    train, held_out = split(samples, share)
    assert len(train) == int(count * share)
    assert sorted(train + held_out) == samples
    assert all(abs(later - earlier - count / len(held_out)) < 1 for earlier, later in pairwise(held_out))
