"""Golden arrays of flows, and a backbone of nothing but shapes."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from backbones import LayerInfo


class Shapes(nn.Module):
    """What a detector asks a backbone before there are images: layers of (channels, rows, columns)."""

    name = "shapes"

    def __init__(self, shapes: list[tuple[int, int, int]]) -> None:
        super().__init__()
        self.infos = [LayerInfo(f"layer{i}", c, 1, (h, w)) for i, (c, h, w) in enumerate(shapes)]

    def layer_info(self, *_: object) -> list[LayerInfo]:
        return self.infos


def arrays(name: str) -> tuple[Callable[[str], Tensor], dict]:
    """What gives the golden arrays of a file by name, and its settings."""
    found = np.load(Path(__file__).parent / "golden" / f"{name}.npz")
    return lambda array: torch.from_numpy(found[array]), json.loads(str(found["meta"]))


def step_state(golden: Callable[[str], Tensor], prefix: str, names: dict[str, str]) -> dict[str, Tensor]:
    """The state of a Step by the names that its tensors have in a file, behind a prefix."""
    return {own: golden(prefix + theirs) for own, theirs in names.items()}


def flow_jacobian(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """log|det| of what maps x [C, H, W] to as many values, by autograd."""
    jacobian = torch.autograd.functional.jacobian(lambda flat: function(flat.view(1, *x.shape)).flatten(), x.flatten())
    return torch.linalg.slogdet(jacobian.double()).logabsdet
