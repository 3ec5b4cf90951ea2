"""A teacher for efficientad, distilled from a backbone on the images of folders; what was interrupted goes on."""

import hashlib
import io
import json
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save as write_tensors
from torch import Tensor

from datasets import images_in, normalised, read_image, reader_count, require_images
from errors import DataError, Interrupted, UsageError, first_line
from experiment.detector_config import parse_backbones
from experiment.distill_config import DistillConfig
from experiment.machine.allocator import kept_blocks
from experiment.machine.device import choose_device, choose_precision
from experiment.machine.memory import one_line_when_full
from experiment.machine.progress import progress
from experiment.plan.resolve import load_backbone
from experiment.train.state import save_state
from files import sha256_of, write_bytes
from methods.distillation import SIDE, Distillation, Steps

STATE_SECONDS = 120.0  # between two states, the most that an interruption costs
SCALED = 10_000  # images that mu and sigma are of
GREY = 0.1  # of the images, how many lose their colours
SMALLEST = 0.25  # of a photograph's shorter side, the side of a crop
SUFFIXES = (".pth", ".pt", ".safetensors")


def distill(config: DistillConfig) -> int:
    """Write a teacher.

    Returns:
        The exit code, 0.

    Raises:
        UsageError: flags that are missing, no such backbone, layer or folder, or a file that is there already.
        DataError: no images, one that cannot be read, a state of another distillation, or no memory or room.
        Interrupted: with how far it has come.
    """
    if not config.images or config.out is None:
        raise UsageError("distill needs --images FOLDER, whose images it learns from, and --out FILE for the teacher")
    if config.out.suffix not in SUFFIXES:
        raise UsageError(f"--out {config.out}: expected a name that ends in {' or '.join(SUFFIXES)}")
    if config.out.exists():
        raise UsageError(f"--out {config.out} is there already: give another one, that teacher stays as it is")
    backbone, *more = parse_backbones(config.backbone.backbone_names, config.backbone.layers_to_extract_from)
    if more:
        raise UsageError("distill takes one backbone: give -b once")
    source = load_backbone(backbone, config.backbone, config.seed, (2 * SIDE, 2 * SIDE))
    paths = _paths(config.images)
    with one_line_when_full("lower --batch_size or --width"), kept_blocks():
        device = choose_device((config.gpu,))
        precision = choose_precision(config.precision, device)
        own = Distillation(source, backbone.layers, config.size, config.width, precision, config.seed).to(device)
        _run(config, own, _Pictures(paths, config, device), _identity(config, paths, precision))
    click.echo(f"{config.out}: a teacher for efficientad --size {config.size} --width {config.width:g}", err=True)
    return 0


def _run(config: DistillConfig, own: Distillation, pictures: "_Pictures", identity: str) -> None:
    """The steps that are left, and the teacher's file."""
    state_path = config.out.with_name(f".{config.out.name}.state")
    steps, done = Steps(own, config.lr), 0
    if (state := _read_state(state_path, identity)) is None:
        own.learn_scale(progress("mean and deviation", pictures.of_all(SCALED), total=pictures.passes(SCALED)))
    else:
        try:
            done = _take_up(steps, state)
        except (RuntimeError, ValueError, LookupError, TypeError) as error:
            raise _damaged(state_path, error) from error
    kept, written = done, time.monotonic() if state else -STATE_SECONDS
    try:
        with progress(f"distilling {config.out.name}", total=max(done, config.steps), unit="step") as bar:
            bar.update(done)
            for large, small in pictures.batches(done, config.steps):
                loss = steps.step(large, small)
                done += 1
                bar.update()
                if time.monotonic() - written >= STATE_SECONDS or done >= config.steps:
                    bar.set_postfix(loss=f"{_finite(loss, done):.4f}")
                    _write_state(state_path, steps, done, identity)
                    kept, written = done, time.monotonic()
    except Interrupted as stop:
        stop.advice = f"{kept} of {config.steps} steps are kept; the same command goes on"
        raise
    _write(config.out, {name: one.cpu().contiguous() for name, one in own.teacher.state_dict().items()})
    state_path.unlink()


class _Pictures:
    """The images of folders at both sizes: those of a step depend on its number alone.

    Args:
        paths: of the images.
        config: what the command line says.
        device: where they are wanted.
    """

    def __init__(self, paths: Sequence[Path], config: DistillConfig, device: torch.device) -> None:
        self.paths = paths
        self.config = config
        self.device = device
        self.workers = reader_count(config.num_workers)

    def batches(self, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Of the steps from start to stop: normalised [B, 3, 512, 512] and [B, 3, 256, 256]; the next is read ahead."""
        count = self.config.batch_size
        for pictures in self._ahead(range(i * count, (i + 1) * count) for i in range(start, stop)):
            large, small = zip(*pictures, strict=True)
            yield self._stacked(large), self._stacked(small)

    def passes(self, most: int) -> int:
        """How many batches of_all gives."""
        return -(-min(most, len(self.paths)) // self.config.batch_size)

    def of_all(self, most: int) -> Iterator[Tensor]:
        """Batches of the larger size of all images, or of so many of them."""
        numbers = range(min(most, len(self.paths)))
        count = self.config.batch_size
        for pictures in self._ahead(numbers[i : i + count] for i in range(0, len(numbers), count)):
            yield self._stacked([large for large, _ in pictures])

    def _ahead(self, groups: Iterable[Sequence[int]]) -> Iterator[list[tuple[Tensor, Tensor]]]:
        waiting: deque[Any] = deque()
        with ThreadPoolExecutor(self.workers) as pool:
            for group in groups:
                waiting.append([pool.submit(self._read, number) for number in group])
                if len(waiting) > 1:
                    yield [one.result() for one in waiting.popleft()]
            while waiting:
                yield [one.result() for one in waiting.popleft()]

    def _read(self, number: int) -> tuple[Tensor, Tensor]:
        """The image that is seen as the n-th: in every pass over all of them, all in another order."""
        turn, place = divmod(number, len(self.paths))
        image = read_image(self.paths[_order(self.config.seed, turn, len(self.paths))[place]])
        rng = np.random.default_rng([self.config.seed, 1, number])
        if self.config.crops:
            image = _square(image, rng)
        if rng.random() < GREY:
            image = image.convert("L").convert("RGB")
        return tuple(_pixels(image.resize((side, side), Image.Resampling.BILINEAR)) for side in (2 * SIDE, SIDE))

    def _stacked(self, pictures: Sequence[Tensor]) -> Tensor:
        return normalised(torch.stack(list(pictures)).to(self.device))


@cache
def _order(seed: int, turn: int, count: int) -> NDArray[np.integer]:
    """The order of so many images in a pass over them."""
    return np.random.default_rng([seed, 0, turn]).permutation(count)


def _square(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A random square of an image, of at least a quarter of its shorter side."""
    side = max(1, round(min(image.size) * rng.uniform(SMALLEST, 1)))
    left, top = (int(rng.integers(had - side + 1)) for had in image.size)
    return image.crop((left, top, left + side, top + side))


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _paths(folders: Sequence[Path]) -> list[Path]:
    """The images in folders and below them.

    Raises:
        UsageError: no such folder.
        DataError: no images in one.
    """
    found: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"--images {folder} is not a folder")
        own = images_in(folder, recursive=True)
        require_images(own, folder)
        found += own
    return found


def _identity(config: DistillConfig, paths: Sequence[Path], precision: torch.dtype) -> str:
    """All that the steps depend on, but their number, as JSON."""
    weights = Path(config.backbone.backbone_weights)
    said = asdict(config)
    for name in ("images", "out", "steps", "gpu", "num_workers"):
        del said[name]
    digest = hashlib.sha256("\n".join(map(str, paths)).encode(errors="surrogateescape")).hexdigest()
    more = {
        "precision": str(precision),
        "paths": digest,
        "weights": sha256_of(weights) if weights.is_file() else None,
    }
    return json.dumps({**said, **more})


def _write_state(path: Path, steps: Steps, done: int, identity: str) -> None:
    own = steps.distillation
    state = {
        "identity": identity,
        "done": done,
        "teacher": own.teacher.state_dict(),
        "scale": [own.mean, own.deviation],
        "optimizer": steps.optimizer.state_dict(),
        "scaler": steps.scaler.state_dict(),
    }
    save_state(path, state)


def _read_state(path: Path, identity: str) -> dict[str, Any] | None:
    """What _write_state wrote of the same distillation, if it did.

    Raises:
        DataError: it is damaged, or of another one.
    """
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        known = state["identity"]
    except Exception as error:  # what is no such file may raise anything
        raise _damaged(path, error) from error
    if known != identity:
        raise DataError(
            f"'{path}' is of a distillation with other options or images, which was interrupted: repeat its command, "
            "remove that file, or give another --out"
        )
    return state


def _take_up(steps: Steps, state: dict[str, Any]) -> int:
    """Go on from a state; how many steps it has."""
    own = steps.distillation
    own.teacher.load_state_dict(state["teacher"])
    own.mean.copy_(state["scale"][0])
    own.deviation.copy_(state["scale"][1])
    steps.optimizer.load_state_dict(state["optimizer"])
    steps.scaler.load_state_dict(state["scaler"])
    return state["done"]


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(f"'{path}' is damaged ({first_line(error)}): remove it to distil from the start")


def _finite(loss: Tensor, step: int) -> float:
    """A loss as a number.

    Raises:
        DataError: it is none.
    """
    if not loss.isfinite():
        raise DataError(f"distilling diverged: the loss is not finite at step {step}; try --precision fp32")
    return loss.item()


def _write(path: Path, teacher: dict[str, Tensor]) -> None:
    """The teacher's file: a state dict, named as those that are published."""
    if path.suffix == ".safetensors":
        write_bytes(path, write_tensors(teacher))
        return
    buffer = io.BytesIO()
    torch.save(teacher, buffer)
    write_bytes(path, buffer.getvalue())
