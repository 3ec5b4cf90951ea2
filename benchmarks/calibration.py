"""Whether what calibrate says of a threshold holds: the share of good parts that it rejects, by few fresh images.

    python main.py --run_name calibration patchcore -b efficientnet_lite0 -le blocks.2 -le blocks.4 \\
        --pretrain_embed_dimension 256 --target_embed_dimension 256 -p 0.01 \\
        dataset --imagesize 96 --resize_mode square elpv
    python benchmarks/calibration.py results/project/group/calibration

takes a run's scores of the normal test images, which its models have not seen. Of each class, --images of them are
drawn --draws times (seeds 0, 1, ...): calibrate's threshold is set by them and its interval stated, and the others are
decided on. Of every share of false alarms that is asked for, the table holds what is expected, as it is stated; the
mean share of the others above the threshold; the interval that is stated, and in how many draws it holds the share of
the others. These are few as well: where one in a thousand is the share in the long run, none of 80 may be above it, and
0 lies below the interval. "In whole parts" counts an interval whose ends are rounded outwards to a number of parts.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from detection import is_anomalous
from detection.decision import allowed_above, share_interval
from experiment.record.read import read_run
from experiment.use.calibrate import threshold_of

SHARES = (0.01, 0.05, 0.1)


def draws(scores: NDArray[np.float32], images: int, count: int, share: float) -> Iterator[tuple[int, int]]:
    """Of every draw of so many scores [N] how many of the others lie above the threshold of these, and of how many."""
    for seed in range(count):
        order = np.random.default_rng(seed).permutation(len(scores))
        fresh, others = scores[order[:images]], scores[order[images:]]
        yield int(is_anomalous(others, threshold_of(fresh, share)).sum()), len(others)


def row(scores: NDArray[np.float32], images: int, count: int, share: float) -> dict[str, str]:
    """What is stated of a share of false alarms, and what is found."""
    above = allowed_above(share, images)
    low, high = share_interval(above, images)
    found = list(draws(scores, images, count, share))
    held = sum(low <= own / total <= high for own, total in found)
    whole = sum(math.floor(low * total) <= own <= math.ceil(high * total) for own, total in found)
    return {
        "asked for": f"{100 * share:.3g} %",
        "expected": f"{100 * (above + 1) / (images + 1):.1f} %",
        "of the others": f"{100 * np.mean([own / total for own, total in found]):.1f} %",
        "interval": f"{100 * low:.2f} to {100 * high:.1f} %",
        "holds": f"{held} of {count}",
        "in whole parts": f"{whole} of {count}",
    }


def table(folder: Path, images: int, count: int) -> pd.DataFrame:
    """A row for every class of a run and every share that is asked for.

    Raises:
        DataError, UsageError: no finished run.
    """
    run = read_run(folder)
    rows = []
    for job in run.jobs:
        predictions = run.predictions(job)
        scores = predictions["score"].to_numpy(np.float32)[predictions["label"] == 0]
        rows += [{"class": job.title, **row(scores, images, count, share)} for share in SHARES]
    return pd.DataFrame(rows)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--images", type=int, default=40, help="fresh ones of a draw")
    parser.add_argument("--draws", type=int, default=100)
    arguments = parser.parse_args(words)
    print(table(arguments.run, arguments.images, arguments.draws).to_markdown(index=False))


if __name__ == "__main__":
    main()
