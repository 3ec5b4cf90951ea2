"""Whether every detector works on this GPU, and how fast: one table, and in the end pass or fail.

    python benchmarks/gpu.py                      the first GPU, at the papers' sizes
    python benchmarks/gpu.py --gpu 1 --precision fp32 --detectors net rd
    python benchmarks/gpu.py --device cpu         the same table in tiny settings, to try this program itself

Images are made and backbones have random weights, so that nothing is downloaded: neither changes the time. Of every
detector the table holds

    s per pass      seconds of a pass over the training images, from the feature bank, after a first one
    ms per image    of predicting from tensors in host memory, batch by batch, until scores and maps are back
    peak GiB        the most memory of the device at once (on a CPU, of this process)
    off by          the largest difference of scores to those of the same model on the CPU, both in fp32, as a share of
                    their standard deviation among the images; at most 0.02
    same twice      whether training again from the same seed gives the same bytes, and so do its scores

and it fails where one of the last two does, a score is not finite, or a detector ends in an error. Paste all that it
prints into an issue.
"""

import argparse
import copy
import hashlib
import os
import platform
import resource
import shlex
import statistics
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as main.py does
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch.nn.functional as F
from accuracy import build, parse_setting
from torch import Tensor

import backbones
from backbones.features import shape_of, types_of
from cli.everything import MVTEC
from datasets import Shuffled
from detection import Detector, Normal
from errors import UsageError, first_line
from experiment.dataset_config import DatasetConfig
from experiment.detector_config import DetectorConfig
from experiment.machine.device import choose_device, choose_precision
from methods import DETECTORS
from options import declared

MOST_OFF = 0.02  # far below what moves a decision, far above rounding
PASSES = 3  # the first is not counted
EMBED_BATCH = 8


class Scale(NamedTuple):
    """How much is computed: images, and what stands behind each detector's command, those of its data behind "dataset";
    of one without its own the line under ""."""

    train: int
    test: int
    lines: Mapping[str, str]


PAPERS = Scale(
    train=128,
    test=32,
    lines={
        **MVTEC,
        "efficientad": "--teacher random",
        "multimodal": "-b wideresnet50 -le layer3 -le layer2",
    },
)
SMALL = "-b resnet18 -le layer1 -le layer2"
FEW = "--pretrain_embed_dimension 24 --target_embed_dimension 16"
TINY = Scale(
    train=6,
    test=4,
    lines={
        own: f"{line} dataset --batch_size 2 --imagesize 32"
        for own, line in {
            "": SMALL,
            "net": f"{SMALL} {FEW} --dsc_hidden 8 --pre_proj 1",
            "cfa": f"{SMALL} --gamma_d 12",
            "rd": f"{SMALL} --blocks 1",
            "logicrd": f"{SMALL} --blocks 1",
            "patchcore": f"{SMALL} {FEW}",
            "reconpatch": f"{SMALL} {FEW} --percentage 0.1 --modulated_dim 12 --projected_dim 8",
            "cpr": f"{SMALL} --kind texture --codes 4 --stem 8 --width 4 --local_dim 8 --pairs 20 --references 2",
            "efficientad": "--teacher random --padding --width 0.0625",
            "multimodal": "-b resnet18 -le layer2 -le layer1 --dim 8 --heads 2 --depth 1",
            **dict.fromkeys(("template", "frequency", "lowrank"), ""),
        }.items()
    },
)


class Setting(NamedTuple):
    """A detector's configuration, and how many images of which side a batch has."""

    detector: DetectorConfig
    batch: int
    side: int

    @classmethod
    def of(cls, command: str, lines: Mapping[str, str]) -> "Setting":
        """What a detector's line says, with a backbone that nothing is downloaded for, and few passes."""
        line, _, data = lines.get(command, lines.get("", "")).partition("dataset")
        kind = DETECTORS[command]
        names = {own.name for own in declared(kind.Options)}
        passes = [f"--{own} {PASSES}" for own in ("meta_epochs", "epochs") if own in names]  # some learn without any
        detector = parse_setting(" ".join([command, line, "--backbone_weights random", *passes]), None)
        words = shlex.split(data)
        given = {flag.removeprefix("--"): int(value) for flag, value in zip(words[::2], words[1::2], strict=True)}
        whole = {"batch_size": DatasetConfig.batch_size, "imagesize": DatasetConfig.imagesize}
        whole |= dict(kind.DATASET_DEFAULTS) | given
        return cls(detector, whole["batch_size"], whole["imagesize"])


class Row(NamedTuple):
    """What was found of a detector."""

    detector: str
    seconds: float
    milliseconds: float
    peak: float
    off: float
    same: bool
    finite: bool

    @property
    def problems(self) -> list[str]:
        """Why it fails."""
        found = {
            f"scores are {self.off:.3g} of their deviation off the CPU's, more than {MOST_OFF}": not self.off
            <= MOST_OFF,
            "training again gave other bytes": not self.same,
            "scores are not finite": not self.finite,
        }
        return [text for text, is_so in found.items() if is_so]


class Batches:
    """A bank's batches, in a new order at every pass."""

    def __init__(self, bank: backbones.FeatureBank, size: int) -> None:
        self.bank, self.size = bank, size
        self.order = Shuffled(len(bank), 0)

    def __len__(self) -> int:
        return -(-len(self.order) // self.size)

    def __iter__(self) -> Iterator[Tensor]:
        return self.bank.batches(self.size, self.order)


def make_images(count: int, side: int, damaged: bool) -> Tensor:
    """Smooth noise like normalised photographs, [N, 3, side, side]; if damaged, every second has a bright square."""
    generator = torch.Generator().manual_seed(int(damaged))
    coarse = torch.randn(count, 3, side // 8, side // 8, generator=generator)
    images = F.interpolate(coarse, size=(side, side), mode="bilinear") + 0.1 * torch.randn(
        count, 3, side, side, generator=generator
    )
    if damaged:
        images[::2, :, side // 4 : side // 2, side // 4 : side // 2] = 3
    return images


def trained(setting: Setting, images: Tensor, device: torch.device, precision: torch.dtype) -> tuple[Detector, float]:
    """The detector trained on images, and the median seconds of its passes but for the first, where there are more."""
    torch.manual_seed(0)
    config, backbone = setting.detector, setting.detector.backbones[0]
    extractor = backbones.load(backbone.name, config.backbone_weights)
    detector = build(extractor, config, (setting.side, setting.side), 0, precision, device)
    embeddings = [detector.embed(batch) for batch in images.split(EMBED_BATCH)]
    bank = backbones.FeatureBank(shape_of(len(images), embeddings[0]), types_of(embeddings[0]), "device", device)
    bank.fill(embeddings)
    times = []
    start = now(device)
    for _ in detector.training_on(Normal(Batches(bank, setting.batch))):
        times.append(now(device) - start)
        start = now(device)
    return detector, statistics.median(times[1:] or times)


def now(device: torch.device) -> float:
    """The time, once all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def scores_of(detector: Detector, images: Tensor) -> Tensor:
    """Image scores [N], on the CPU; maps are brought there too."""
    scores = []
    for batch in images.split(EMBED_BATCH):
        prediction = detector.predict(batch)
        prediction.maps.cpu()
        scores.append(prediction.scores.cpu())
    return torch.cat(scores)


def digest(detector: Detector, scores: Tensor) -> str:
    """Of all that was learned, and of scores."""
    found = hashlib.sha256(scores.numpy().tobytes())
    for tensor in detector.state_dict().values():
        found.update(tensor.detach().cpu().numpy().tobytes())
    return found.hexdigest()


def difference(detector: Detector, images: Tensor) -> float:
    """Of scores on the detector's device to those on the CPU, both in fp32: the largest over their deviation."""
    detector.precision = torch.float32
    there = scores_of(detector, images)
    here = scores_of(copy.deepcopy(detector).cpu(), images)
    return ((there - here).abs().max() / here.std()).item()


def measure(command: str, scale: Scale, device: torch.device, precision: torch.dtype) -> Row:
    """A detector's row."""
    setting = Setting.of(command, scale.lines)
    train, test = make_images(scale.train, setting.side, False), make_images(scale.test, setting.side, True)
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    detector, seconds = trained(setting, train, device, precision)
    times, scores = [], []
    for _ in range(4):
        start = now(device)
        scores.append(scores_of(detector, test))
        times.append(now(device) - start)
    again, _ = trained(setting, train, device, precision)
    same = digest(detector, scores[0]) == digest(again, scores_of(again, test))
    return Row(
        command,
        seconds,
        statistics.median(times[1:]) / len(test) * 1000,
        peak_memory(device),
        difference(detector, test),
        same and all(torch.equal(one, scores[0]) for one in scores),
        bool(scores[0].isfinite().all()),
    )


def peak_memory(device: torch.device) -> float:
    """In GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def describe(device: torch.device, precision: torch.dtype) -> str:
    """What computes."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        where = f"{torch.cuda.get_device_name(device)} (compute capability {major}.{minor}), CUDA {torch.version.cuda}"
    else:
        where = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    return f"{where}, torch {torch.__version__}, {str(precision).removeprefix('torch.')}"


def main(words: Sequence[str] | None = None) -> int:
    """Print the table; the exit code, 0 where everything passes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--gpu", type=int, default=0)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto")
    parser.add_argument("--detectors", nargs="+", choices=list(DETECTORS), default=list(DETECTORS))
    arguments = parser.parse_args(words)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("Error: no CUDA device found: run this where there is one, or with --device cpu", file=sys.stderr)
        return 1
    try:
        device = choose_device((arguments.gpu,)) if arguments.device == "cuda" else torch.device("cpu")
    except UsageError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    precision = choose_precision(arguments.precision, device)
    scale = PAPERS if device.type == "cuda" else TINY
    print(f"{describe(device, precision)}; {scale.train} training images, {scale.test} others\n")
    print("| detector | s per pass | ms per image | peak GiB | off by | same twice |")
    print("|---|---|---|---|---|---|", flush=True)
    failures = []
    for command in arguments.detectors:
        try:
            row = measure(command, scale, device, precision)
        except Exception as error:  # the others are tried all the same
            traceback.print_exc()
            print(f"| {command} | | | | | |", flush=True)
            failures.append(f"{command}: {first_line(error)}")
            continue
        cells = f"{row.seconds:.3g} | {row.milliseconds:.3g} | {row.peak:.2f} | {row.off:.2g}"
        print(f"| {row.detector} | {cells} | {'yes' if row.same else 'no'} |", flush=True)
        failures += [f"{command}: {problem}" for problem in row.problems]
    print("\n" + ("\n".join(f"FAIL {failure}" for failure in failures) if failures else "PASS"))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
