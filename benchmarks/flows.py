"""How long flows take to make a train step and to predict, of layers' maps at hand, beside anomalib's FastFlow.

    python benchmarks/flows.py                                   ours alone, where anomalib is not installed
    python benchmarks/flows.py --precision bf16 --imagesize 256 --backbone wideresnet50 -le layer1 -le layer2 -le layer3

anomalib's, which are FrEIA's couplings, compute in float32, from equal numbers of steps, widths and maps. Maps are of
random numbers, which do not change the time. Every number is the least time of several rounds in which all are measured
in turn, with nothing else running; OMP_NUM_THREADS says how many threads there are.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as main.py does
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch import Tensor, nn

import backbones
from benchmarks.neighbours import line
from benchmarks.speed import instructions
from detection import Detector
from detection.precision import PRECISIONS
from methods import DETECTORS

LAYERS = {"efficientnet_lite0": ["blocks.1", "blocks.2", "blocks.4"]}
Action = Callable[[], object]


def ours(detector: Detector, maps: Sequence[Tensor]) -> tuple[Action, Action]:
    """A train step, and predictions."""
    trainer = detector.trainer()
    kept = tuple(own.to(detector.feature_type) for own in maps)

    def step() -> None:
        detector.train()
        list(trainer.steps([kept]))

    return step, lambda: detector.score(kept)


def anomalib(detector: Detector, maps: Sequence[Tensor]) -> tuple[Action, Action] | None:
    """The same of anomalib's FastFlow; None where it is not installed."""
    try:
        from anomalib.models.image.fastflow.loss import FastflowLoss
        from anomalib.models.image.fastflow.torch_model import AnomalyMapGenerator, create_fast_flow_block
    except ImportError:
        return None
    own = detector.options
    shapes = [tuple(one.shape[1:]) for one in maps]
    norms = nn.ModuleList(nn.LayerNorm(shape) for shape in shapes)
    blocks = nn.ModuleList(
        create_fast_flow_block(list(shape), own.conv3x3_only, own.hidden_ratio, own.steps) for shape in shapes
    )
    learned = [*norms.parameters(), *blocks.parameters()]
    optimizer = torch.optim.Adam(learned, lr=own.lr, weight_decay=own.weight_decay)
    loss_of, generator = FastflowLoss(), AnomalyMapGenerator(detector.image_size)

    def latent() -> tuple[list[Tensor], list[Tensor]]:
        found = [block(norm(one)) for block, norm, one in zip(blocks, norms, maps, strict=True)]
        z, logdets = zip(*found, strict=True)
        return list(z), list(logdets)

    def step() -> None:
        loss = loss_of(*latent())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    @torch.no_grad()
    def predict() -> Tensor:
        return generator(latent()[0]).amax(dim=(-2, -1))

    return step, predict


def least(rounds: int, *actions: Action) -> list[float]:
    """Seconds of each action, after a round that is not counted."""
    times = []
    for _ in range(rounds + 1):
        times.append([])
        for action in actions:
            start = time.perf_counter()
            action()
            times[-1].append(time.perf_counter() - start)
    return [min(own) for own in zip(*times[1:], strict=True)]


def main(words: Sequence[str] | None = None) -> None:
    """A line for every detector and what it does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("-le", dest="layers", action="append", default=[])
    parser.add_argument("--imagesize", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(words)
    layers, size = arguments.layers or LAYERS[arguments.backbone], (arguments.imagesize,) * 2
    extractor, precision = backbones.load(arguments.backbone, "random"), PRECISIONS[arguments.precision]
    print(f"{instructions()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {arguments.precision}")
    for command in ("fastflow", "msflow"):
        detector = DETECTORS[command](extractor, layers, size, precision=precision)
        infos = extractor.layer_info(layers, size)
        shapes = [(arguments.batch_size, info.channels, *info.grid) for info in infos]
        if command == "msflow":
            shapes = [(*shape[:2], *(-(-cells // 2) for cells in shape[2:])) for shape in shapes]
        maps = [torch.randn(shape) for shape in shapes]
        actions = ours(detector, maps)
        theirs = anomalib(detector, maps) if command == "fastflow" else None
        for name, i in (("train step", 0), ("prediction", 1)):
            times = least(arguments.rounds, *(pair[i] for pair in (actions, theirs) if pair))
            line(f"{command}, {name}, {arguments.batch_size} images", *(1000 * one for one in times),
                 *[None] * (2 - len(times)), "ms")  # fmt: skip


if __name__ == "__main__":
    main()
