"""How long 15 classes and 5 seeds take on so many workers, computed from seconds per stage.

    python benchmarks/scaling.py                                                 stages measured on 2 CPU cores
    python benchmarks/scaling.py --train 0.0004 --embed 0.0003 --score 0.0001    any others

A job is 40 x 4 passes over a class of MVTec AD and an evaluation after every meta epoch. Jobs that share features embed
them once per worker. They are divided and ordered as experiment/scale/parallel.py does it; a free worker takes the
next. Bounds are the whole work divided by the workers, and the longest single job.
"""

import argparse
import heapq
from pathlib import Path
from types import SimpleNamespace

import pandas as pd

ROOT = Path(__file__).parent.parent
IMAGES = {  # of MVTec AD: to train and to test on
    "bottle": (209, 83),
    "cable": (224, 150),
    "capsule": (219, 132),
    "carpet": (280, 117),
    "grid": (264, 78),
    "hazelnut": (391, 110),
    "leather": (245, 124),
    "metal_nut": (220, 115),
    "pill": (267, 167),
    "screw": (320, 160),
    "tile": (230, 117),
    "toothbrush": (60, 42),
    "transistor": (213, 100),
    "wood": (247, 79),
    "zipper": (240, 151),
}
PASSES, EVALUATIONS = 160, 40
STAGES = {  # seconds: measured by benchmarks/speed.py on 2 cores of an AMD EPYC, bf16
    "start": (13.0, "a worker: Ray, Python, PyTorch"),
    "decode": (0.014, "read and resize an image"),
    "embed": (0.081, "backbone and patch embedding of an image"),
    "train": (0.073, "an image in a pass"),
    "score": (0.014, "discriminator, map and smoothing of a test image"),
    "metrics": (0.45, "all metrics of a class"),
}


def table(stages: argparse.Namespace, workers: list[int], seeds: int) -> pd.DataFrame:
    """Hours on every number of workers."""
    from experiment.scale.parallel import split

    def of_features(name: str) -> float:
        return sum(IMAGES[name]) * (stages.decode + stages.embed)

    def of_job(name: str) -> float:
        train, test = IMAGES[name]
        return PASSES * train * stages.train + EVALUATIONS * (test * stages.score + stages.metrics)

    classes = [[_task(name) for _ in range(seeds)] for name in IMAGES]
    rows = []
    for count in workers:
        free = [stages.start] * count
        for tasks in split(classes, 2 * count):
            name = tasks[0].name
            heapq.heappush(free, heapq.heappop(free) + of_features(name) + len(tasks) * of_job(name))
        work = sum(of_features(name) + seeds * of_job(name) for name in IMAGES)
        longest = max(of_features(name) + of_job(name) for name in IMAGES)
        rows.append({"workers": count, "hours": max(free) / 3600, "work / workers": work / count / 3600})
        rows[-1] |= {"longest job": longest / 3600, "busy": work / count / max(free)}
    return pd.DataFrame(rows)


def _task(name: str) -> SimpleNamespace:
    """As much of a task as split looks at."""
    return SimpleNamespace(name=name, job=SimpleNamespace(samples=SimpleNamespace(train=range(IMAGES[name][0]))))


if __name__ == "__main__":
    import sys

    sys.path.insert(0, str(ROOT))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for stage, (seconds, what) in STAGES.items():
        parser.add_argument(f"--{stage}", type=float, default=seconds, help=f"seconds: {what} [default: {seconds}]")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    computed = table(arguments, arguments.workers, arguments.seeds)
    print(computed.to_markdown(index=False, floatfmt=("d", ".2f", ".2f", ".2f", ".2f")))
