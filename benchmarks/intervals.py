"""How often 95 % intervals hold the truth, and how often DeLong's test sees a difference that is not there.

    python benchmarks/intervals.py [--sets 1000] [--draws 200]

Test sets are simulated, so that the truth is known. Scores of images are normal around 0, or further off where an image
is anomalous and by a spread of its own. Maps are noise with an image's own shift and a square that is brighter by an
image's own amount: pixels of one image go together, as real ones do. Truths of AUROC are computed, those of other
metrics are of a simulated set of many images.
"""

import argparse
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))

from metrics import DECISION_METRICS, METRICS, bootstrap, count_pixels, map_metrics, pixel_decision_metrics
from metrics.significance import (
    CHANCE,
    auroc_interval,
    estimate,
    p_value,
    placements,
    symmetric_interval,
)

SETTINGS = (  # normal and anomalous images, how far apart their scores are, and the spread of the anomalous ones
    (60, 60, 1.2, 1.0),
    (20, 60, 1.5, 1.5),
    (118, 313, 1.0, 1.0),
    (40, 100, 3.0, 1.2),
    (20, 40, 4.0, 1.5),
)
DRAWN = SETTINGS[:2]  # of which the bootstrap is tried
MAPS = ((40, 60),)  # normal and anomalous images
SIDE, DEFECT, THRESHOLD = 16, 5, 1.5  # of a map, of its square, and of a pixel that is called defective
MANY = 20_000  # images that are taken for all
Row = tuple[str, str, float, float]


def image_scores(
    normal: int, anomalous: int, gap: float, spread: float, rng: np.random.Generator
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Labels and scores of images."""
    labels = np.arange(normal + anomalous) >= normal
    return labels, rng.normal(size=len(labels)) * np.where(labels, spread, 1) + gap * labels


def maps_of(normal: int, anomalous: int, rng: np.random.Generator) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Masks and maps of images."""
    masks = np.zeros((normal + anomalous, SIDE, SIDE), bool)
    masks[normal:, 3 : 3 + DEFECT, 4 : 4 + DEFECT] = True
    shifts, gaps = rng.normal(size=(2, len(masks), 1, 1))
    return masks, (rng.normal(size=masks.shape) + 0.4 * shifts + masks * (2 + 0.6 * gaps)).astype(np.float32)


def of_image_auroc(sets: int, rng: np.random.Generator) -> Iterator[Row]:
    """DeLong's intervals, in the logit as they are used and symmetric as they are mostly printed."""
    for normal, anomalous, gap, spread in SETTINGS:
        truth = float(ndtr(gap / math.hypot(1, spread)))
        found = [placements(*image_scores(normal, anomalous, gap, spread, rng)) for _ in range(sets)]
        for name, interval in (
            ("image AUROC, DeLong", auroc_interval),
            ("image AUROC, DeLong, symmetric", lambda own: symmetric_interval(estimate(own))),
        ):
            yield name, f"{normal} + {anomalous}", truth, _covered(map(interval, found), truth)


def of_differences(sets: int, rng: np.random.Generator) -> Iterator[Row]:
    """DeLong's interval of the difference of two detectors that agree in part, and his test where there is none."""
    for normal, anomalous, gap, _ in SETTINGS[:4]:
        found: dict[float, list] = {0.0: [], 0.3: []}
        for more, own in found.items():
            for _ in range(sets):
                labels, hard = image_scores(normal, anomalous, 0.0, 1.0, rng)
                pair = [hard + rng.normal(size=len(hard)) + (gap + by) * math.sqrt(2) * labels for by in (more, 0.0)]
                own.append(estimate(placements(labels, pair[0]).minus(placements(labels, pair[1]))))
        truth = float(ndtr((gap + 0.3) / math.sqrt(2)) - ndtr(gap / math.sqrt(2)))
        images = f"{normal} + {anomalous}"
        yield "difference, DeLong", images, truth, _covered(map(symmetric_interval, found[0.3]), truth)
        alarms = np.mean([p_value(own) < CHANCE for own in found[0.0]])
        yield "no difference, p of DeLong's test not below 0.05", images, 0.0, 1 - alarms


def of_bootstrap(sets: int, draws: int, rng: np.random.Generator) -> Iterator[Row]:
    """Bootstrap intervals of the metrics of images."""
    names = [name for name, metric in METRICS.items() if metric.is_of_images]
    for normal, anomalous, gap, spread in DRAWN:
        share = MANY // (normal + anomalous)
        whole = image_scores(share * normal, share * anomalous, gap, spread, rng)
        truths = {name: METRICS[name].function(*whole) for name in names}

        def one(shape: tuple = (normal, anomalous, gap, spread)) -> dict:
            labels, scores = image_scores(*shape, rng)
            drawn = bootstrap.draw(labels, int(rng.integers(2**32)), draws)
            found = bootstrap.deviations(labels, scores, scores > 1, None, drawn)
            return {name: bootstrap.interval(METRICS[name].function(labels, scores), found[name]) for name in names}

        yield from _rows(one, sets, truths, f"{normal} + {anomalous}")


def of_maps(sets: int, draws: int, rng: np.random.Generator) -> Iterator[Row]:
    """Bootstrap intervals of the metrics of pixels, images drawn whole."""
    for normal, anomalous in MAPS:
        share = MANY // (normal + anomalous)
        whole = maps_of(share * normal, share * anomalous, rng)
        truths = map_metrics(*whole) | pixel_decision_metrics(whole[0], whole[1] > THRESHOLD)

        def one(shape: tuple = (normal, anomalous)) -> dict:
            masks, maps = maps_of(*shape, rng)
            labels = masks.any((1, 2))
            drawn, called = bootstrap.draw(labels, int(rng.integers(2**32)), draws), maps > THRESHOLD
            pixels = count_pixels(masks, maps, decisions=called)
            found = bootstrap.deviations(labels, maps.max((1, 2)), labels, pixels, drawn)
            values = map_metrics(masks, maps) | pixel_decision_metrics(masks, called)
            return {name: bootstrap.interval(value, found[name]) for name, value in values.items()}

        yield from _rows(one, sets, truths, f"{normal} + {anomalous}")


def _rows(one: Callable[[], dict], sets: int, truths: dict[str, float], images: str) -> Iterator[Row]:
    found = [one() for _ in range(sets)]
    for name, truth in truths.items():
        yield (
            f"{(METRICS | DECISION_METRICS)[name].title}, bootstrap",
            images,
            truth,
            _covered((own[name] for own in found), truth),
        )


def _covered(intervals: Iterator, truth: float) -> float:
    return float(np.mean([low <= truth <= high for low, high in intervals]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=int, default=1000, help="simulated test sets of each row")
    parser.add_argument("--draws", type=int, default=200, help="test sets that the bootstrap draws of each")
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    print(f"{given.sets} simulated test sets a row, {given.draws} bootstrap draws each\n")
    print("| interval | images | truth | covered |\n|---|---|---|---|")
    parts = (
        of_image_auroc(given.sets, rng),
        of_differences(given.sets, rng),
        of_bootstrap(given.sets, given.draws, rng),
        of_maps(given.sets, given.draws, rng),
    )
    for part in tqdm(parts, leave=False):
        for name, images, truth, covered in part:
            print(f"| {name} | {images} | {truth:.3f} | {100 * covered:.1f} % |", flush=True)


if __name__ == "__main__":
    main()
