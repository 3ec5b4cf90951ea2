"""Datasets: folders read into samples, samples into tensors, and what is said of folders that are not right."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_mvtec
from PIL import Image
from torchvision import transforms

from datasets import DATASETS, BatchLoader, ImageDataset, ImageTransform, RandomTransform, check_headers
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
    found = ImageTransform(40, 32).mask(Image.fromarray(pixels))
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
    orders = [[b.images for b in BatchLoader(dataset, 4, workers, shuffle_seed=seed)] for seed in (1, 1)]
    assert torch.equal(orders[0][0], orders[1][0])
    shuffled = BatchLoader(ImageDataset(samples.train, ImageTransform(40, 32)), 4, workers, shuffle_seed=0)
    passes = [next(iter(shuffled)).images for _ in range(6)]
    assert any(not torch.equal(passes[0], other) for other in passes[1:])


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
        (zero_bytes, r"'.*test/good/000\.png' is not an image .* \(and 2 more such files\)"),
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
