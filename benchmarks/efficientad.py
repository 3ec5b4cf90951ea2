"""How long EfficientAD takes beside its own convolutions alone, anomalib's on the same images, and ONNX Runtime.

    python benchmarks/efficientad.py                       size s at 256 pixels, the paper's widths
    python benchmarks/efficientad.py --size m --precision bf16 --rounds 9
    python benchmarks/efficientad.py --width 0.1 --side 64 small, to try this program itself

Weights and images are random: neither changes the time. "floor" runs the convolutions of the very same call again, of
the same inputs in the same precision, forwards and in a step backwards too, and nothing else. anomalib's is always of
the paper's widths, and is left out at others, at sides that its autoencoder does not take, and where it is not
installed. The columns of a row are measured in turn; each is the least CPU time, of all threads together, of several
rounds: other programs change it little.
"""

import argparse
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as main.py does
sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

import backbones
from benchmarks.flows import least
from benchmarks.speed import instructions
from datasets import normalised
from detection import Normal, TrainedModel, autocast
from detection.precision import PRECISIONS
from experiment.use.export import Exported
from methods.efficientad import EfficientAD

CPU = torch.device("cpu")
CONVOLUTIONS = (F.conv2d, torch.conv2d)
BATCHES = (1, 8)


class Recorded(TorchFunctionMode):
    """The convolutions of what is run inside, with their inputs.

    Args:
        precision: that autocast would bring inputs to.
    """

    def __init__(self, precision: torch.dtype) -> None:
        super().__init__()
        self.precision = precision
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function in CONVOLUTIONS:
            kept = (self._kept(one) if isinstance(one, Tensor) else one for one in args)
            self.calls.append((partial(function, **(kwargs or {})), tuple(kept)))
        return function(*args, **(kwargs or {}))

    def _kept(self, tensor: Tensor) -> Tensor:
        learns = tensor.requires_grad and torch.is_grad_enabled()
        return tensor.detach().to(self.precision, copy=True).requires_grad_(learns)

    def again(self) -> None:
        """Run them once more, and backwards where they were part of a step."""
        for function, args in self.calls:
            found = function(*args)
            if found.requires_grad:
                learned = [one for one in args if isinstance(one, Tensor) and one.requires_grad]
                torch.autograd.grad(found, learned, torch.ones_like(found))


def ours(arguments: argparse.Namespace, precision: torch.dtype) -> EfficientAD:
    """A detector that has begun."""
    options = {"size": arguments.size, "width": arguments.width, "teacher": "random", "epochs": 1000}
    side = arguments.side
    detector = EfficientAD(backbones.load("pixels"), ["input"], (side, side), precision=precision, **options)
    with torch.no_grad():
        normal = Normal([pixels(2, side)])
        detector.begin(normal)
        detector.eval().settle(normal)
    return detector


def pixels(count: int, side: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)


def theirs(arguments: argparse.Namespace, precision: torch.dtype) -> Any:
    """anomalib's model, where it can be compared."""
    if arguments.width != 1 or arguments.side < 256 or importlib.util.find_spec("anomalib") is None:
        return None
    from anomalib.models.image.efficient_ad.torch_model import EfficientAdModel, EfficientAdModelSize

    model = EfficientAdModel(384, EfficientAdModelSize.S if arguments.size == "s" else EfficientAdModelSize.M)
    for own in model.quantiles:
        model.quantiles[own].data.fill_(0.1 if own.startswith("qa") else 0.2)
    for own in model.mean_std.values():
        own.data.fill_(1.0)
    model.requires_grad_(True)
    return model


def session(detector: EfficientAD, side: int) -> Callable[[Tensor], Any] | None:
    """ONNX Runtime's prediction of pixels, where it is installed."""
    if importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("onnxscript") is None:
        return None
    import onnxruntime

    network = Exported(TrainedModel(detector, None, None))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "model.onnx"
        images = pixels(2, side).permute(0, 2, 3, 1).contiguous()
        shapes = {"images": {0: torch.export.Dim("batch")}}
        program = torch.export.export(network, (images,), dynamic_shapes=shapes, strict=False)
        torch.onnx.export(program, dynamo=True, input_names=["images"]).save(str(path))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        runtime = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: runtime.run(None, {"images": images.permute(0, 2, 3, 1).contiguous().numpy()})


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["s", "m"], default="s")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--precision", choices=PRECISIONS, help="unset: bf16 and fp32, one after the other")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(words)
    print(f"{instructions()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(
        f"{'CPU milliseconds':<28}{'ours':>9}{'floor':>9}{'above it':>10}{'anomalib':>10}{'gain':>8}{'ONNX, fp32':>12}"
    )
    for name in [arguments.precision] if arguments.precision else ["bf16", "fp32"]:
        measure(arguments, name)


def measure(arguments: argparse.Namespace, name: str) -> None:
    """The rows of a precision."""
    precision = PRECISIONS[name]
    torch.manual_seed(0)
    detector, peer = ours(arguments, precision), theirs(arguments, precision)
    runtime = session(detector, arguments.side)
    for count in BATCHES:
        kept = pixels(count, arguments.side)
        images = normalised(kept)
        recorded = Recorded(precision)
        with recorded, torch.no_grad(), autocast(CPU, precision):
            detector._raw_maps(detector.features(images))  # of all images at once
        actions = {"ours": partial(detector.predict, images), "floor": without_gradients(recorded.again)}
        if peer is not None:
            actions["anomalib"] = partial(predicted, peer.eval(), kept / 255, precision)
        if runtime is not None:
            actions["onnx"] = partial(runtime, kept)
        row(f"{name}, predict, {count} images", arguments.rounds, actions)
    row(f"{name}, train step, 1 image", arguments.rounds, steps(detector, peer, arguments, precision))


def steps(detector: EfficientAD, peer: Any, arguments: argparse.Namespace, precision: torch.dtype) -> dict[str, Any]:
    """A step of each, penalty images drawn inside."""
    kept = pixels(1, arguments.side)
    trainer = detector.train().trainer(Normal([kept]))
    recorded = Recorded(precision)
    with recorded:
        list(trainer.steps([kept]))
    actions = {"ours": lambda: list(trainer.steps([kept])), "floor": recorded.again}
    if peer is not None:
        learned = [*peer.student.parameters(), *peer.ae.parameters()]
        optimizer = torch.optim.Adam(learned, lr=1e-4, weight_decay=1e-5)
        images, foreign = (pixels(1, arguments.side) / 255 for _ in range(2))

        def step() -> None:
            peer.train()
            with autocast(CPU, precision):
                loss = sum(peer(images, foreign))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        actions["anomalib"] = step
    return actions


def without_gradients(action: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            action()

    return run


@torch.no_grad()
def predicted(model: Any, images: Tensor, precision: torch.dtype) -> Any:
    with autocast(CPU, precision):
        return model(images)


def row(name: str, rounds: int, actions: dict[str, Callable[[], Any]]) -> None:
    """Measure a line of the table, and print it."""
    found = dict(zip(actions, (1000 * one for one in least(rounds, *actions.values())), strict=True))
    shown = f"{name:<28}{found['ours']:>9.1f}{found['floor']:>9.1f}{found['ours'] / found['floor']:>8.2f} x"
    if "anomalib" in found:
        shown += f"{found['anomalib']:>10.1f}{found['anomalib'] / found['ours']:>6.2f} x"
    else:
        shown += " " * 18
    print(shown + (f"{found['onnx']:>12.1f}" if "onnx" in found else ""), flush=True)


if __name__ == "__main__":
    main()
