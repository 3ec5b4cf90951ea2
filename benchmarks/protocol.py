"""What masks and PRO are worth in points: the same anomaly maps under this toolkit's protocol and under the original's.

    python benchmarks/protocol.py

A SimpleNet on EfficientNet-Lite0 features is trained on crops of a photographed wall and scores crops with drawn
scratches and stains. The original resizes masks bilinearly and cuts the result off to 0 or 1, which thins every defect;
its PRO dilates predictions by 5 x 5 when it looks for defects, and samples 200 thresholds. Its regions are those of the
resized masks, ours those of the masks at full size.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage import data
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as transforms

import backbones
import metrics
from benchmarks import reference
from datasets import ImageTransform
from datasets.regions import regions_seen
from simplenet import SimpleNet

TRAIN, NORMAL, ANOMALOUS, SIDE = 48, 12, 24, 700
RESIZE, SIZE, BATCH = 329, 288, 8


def crop(rng: np.random.Generator) -> NDArray[np.uint8]:
    """A square of the wall, enlarged to a photograph's size, RGB."""
    wall, side = data.brick(), 260
    y, x = rng.integers(0, wall.shape[0] - side, 2)
    return cv2.cvtColor(cv2.resize(wall[y : y + side, x : x + side], (SIDE, SIDE)), cv2.COLOR_GRAY2RGB)


def damage(image: NDArray[np.uint8], rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The image with two scratches and a stain, and its mask of 0 and 255."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    for _ in range(2):
        points = rng.integers(SIDE // 5, 4 * SIDE // 5, (3, 2)).astype(np.int32)
        cv2.polylines(mask, [points], False, 255, int(rng.integers(3, 10)))
    centre, axes = rng.integers(SIDE // 4, 3 * SIDE // 4, 2), rng.integers(15, 50, 2)
    cv2.ellipse(mask, centre.tolist(), axes.tolist(), float(rng.uniform(0, 180)), 0, 360, 255, -1)
    tone = float(rng.choice([-60, 60]))
    return np.clip(image + (mask > 0)[..., None] * tone, 0, 255).astype(np.uint8), mask


def truncated_mask(mask: Image.Image) -> NDArray[np.bool_]:
    """The original's mask: bilinear, then cut off, so that only pixels that are wholly defective remain."""
    resized = transforms.resize(mask, [RESIZE], InterpolationMode.BILINEAR)
    return transforms.to_tensor(transforms.center_crop(resized, [SIZE]))[0].int().bool().numpy()


def main() -> None:
    """Train, score, and print both protocols."""
    rng, transform = np.random.default_rng(0), ImageTransform(RESIZE, SIZE)
    train = torch.stack([transform.image(Image.fromarray(crop(rng))) for _ in range(TRAIN)])
    images = [crop(rng) for _ in range(NORMAL)]
    masks = [np.zeros((SIDE, SIDE), np.uint8)] * NORMAL
    for _ in range(ANOMALOUS):
        image, mask = damage(crop(rng), rng)
        images.append(image)
        masks.append(mask)
    test = torch.stack([transform.image(Image.fromarray(image)) for image in images])
    detector = SimpleNet(
        backbones.load("efficientnet_lite0"),
        ["blocks.2", "blocks.4"],
        (SIZE, SIZE),
        pretrain_embed_dimension=256,
        target_embed_dimension=256,
        pre_proj=1,
        auto_noise=0.5,
        dsc_hidden=512,
        dsc_margin=0.5,
        dsc_lr=1e-4,
        gan_epochs=8,
    )
    detector.fit(train.split(BATCH))
    maps = torch.cat([detector.predict(batch).maps for batch in test.split(BATCH)]).numpy()
    seen = np.stack([regions_seen(mask, transform) for mask in masks])
    labels = (seen + np.arange(len(seen))[:, None, None] * (seen.max() + 1))[seen > 0]
    truncated = np.stack([truncated_mask(Image.fromarray(mask)) for mask in masks])
    print(f"{TRAIN} training images, {len(images)} test images, {SIZE} x {SIZE}, torch {torch.__version__}\n")
    print(f"{'masks':<22}{'defective pixels':>17}{'pixel AUROC':>13}{'exact PRO':>11}{'dilated PRO':>13}")
    seconds = [0.0, 0.0]
    for name, own, regions in (("nearest, binary", seen > 0, labels), ("bilinear, truncated", truncated, None)):
        start = time.perf_counter()
        exact = metrics.pixel_metrics(own, maps, regions=regions)
        middle = time.perf_counter()
        dilated = reference.pro(own, maps)
        seconds = [seconds[0] + middle - start, seconds[1] + time.perf_counter() - middle]
        print(f"{name:<22}{own.sum():>17}{exact['auroc']:>13.4f}{exact['pro']:>11.4f}{dilated:>13.4f}")
    print(f"\nseconds: all exact pixel metrics {seconds[0] / 2:.2f}, dilated PRO alone {seconds[1] / 2:.1f}")


if __name__ == "__main__":
    main()
