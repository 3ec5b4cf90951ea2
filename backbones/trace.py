"""Running a network without memory or computation, to see what its layers give."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from backbones.centres import Centres, Tracer
from backbones.layouts import BATCH, Shape, Size, shape_of

LEAST_PATCH = 4  # pixels: stride from which a convolution without padding cuts an image into patches
LARGER = ((2, 3), (2, 2))  # factors of height and width; some networks take squares alone


@dataclass(frozen=True)
class Patches:
    """Squares that a network cuts images into: side and stride in pixels."""

    side: int
    stride: int

    def unseen(self, length: int) -> int:
        """The pixels of a side of an image beyond its last patch."""
        return (length - self.side) % self.stride

    def nearest(self, length: int) -> list[int]:
        """The lengths below and above of which all is seen."""
        below = length - self.unseen(length)
        return [below, below + self.stride]


@dataclass(frozen=True)
class Traced:
    """What was seen of images of one size.

    Attributes:
        shapes: of the layers' outputs, by name, or the type's name of what is no tensor; those that were reached.
        centres: where the cells of each output's axes look, by layer and axis.
        maps: the same of all maps on the way, by rows and columns; the last of each.
        signed: whether each output may hold values below 0, by layer.
        patches: what the image is cut into, if it is.
        error: why the network did not reach all layers.
    """

    shapes: dict[str, Shape | str]
    centres: dict[str, dict[int, Centres]]
    maps: dict[Size, tuple[Centres, Centres]]
    signed: dict[str, bool]
    patches: Patches | None
    error: Exception | None


def trace(model: nn.Module, layers: Sequence[str], size: Size) -> Traced:
    """Run a network on the meta device on images of (height, width), to which it is set where it can be.

    What the network raises behind the last of the layers is no matter: its head may want images of one size.
    """
    shapes: dict[str, Shape | str] = {}
    centres: dict[str, dict[int, Centres]] = {}
    signed: dict[str, bool] = {}
    patches: list[Patches] = []
    error = None
    tracer = Tracer()

    def reached(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            shapes[name] = shape_of(output)
            centres[name] = tracer.of(output) if isinstance(output, Tensor) else {}
            signed[name] = id(output) not in tracer.rectified

        return hook

    def convolved(module: nn.Conv2d, inputs: tuple[Tensor, ...]) -> None:
        stride, padding = module.stride[0], module.padding[0]
        if module.in_channels == 3 and stride >= LEAST_PATCH and padding == 0 and type(module) is nn.Conv2d:
            patches.append(Patches(module.kernel_size[0], stride))

    modules = dict(model.named_modules())
    with _hooks() as hooks, torch.no_grad():
        for name in layers:
            hooks(modules[name].register_forward_hook(reached(name)))
        for module in modules.values():
            if isinstance(module, nn.Conv2d):
                hooks(module.register_forward_pre_hook(convolved))
        try:
            if hasattr(model, "set_input_size"):  # transformers: position embeddings follow the image size
                model.set_input_size(img_size=size)
            images = torch.zeros(BATCH, 3, *size, device="meta")
            tracer.start(images)
            with tracer, torch.device("meta"):
                model(images)
        except Exception as raised:  # a network may raise anything
            error = raised if len(shapes) < len(set(layers)) else None
    return Traced(shapes, centres, tracer.maps, signed, patches[0] if patches else None, error)


@contextmanager
def _hooks() -> Iterator[Callable[[Any], Any]]:
    """Takes handles of hooks, which are removed in the end."""
    with ExitStack() as stack:
        yield lambda handle: stack.callback(handle.remove)
