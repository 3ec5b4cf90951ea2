"""Drawing the cells of layers where they look: maps that are resized by the middles of their cells."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones.centres import Centres
from backbones.devices import kept_on_device
from backbones.float32 import full_float32
from backbones.layouts import LayerInfo

PASSES, IMAGES = 4, 4  # of the probe: so many batches of so many images of noise
PIXELS = Centres(0.0, 1.0)


class Alignment(nn.Module):
    """Where the cells of some layers look, kept with the weights of the model that was trained with it.

    Args:
        infos: of the layers; the first has the grid that others are brought to.
        shift: of what is drawn against the layers' cells, in cells: 0.5 for patches of an even side.
    """

    def __init__(self, infos: Sequence[LayerInfo], shift: float = 0.0) -> None:
        super().__init__()
        self.centres = [info.centres for info in infos]
        self.shift = shift
        self.is_final = False

    def get_extra_state(self) -> Tensor:
        """Offsets and strides of rows and columns, float64 [L, 2, 2]."""
        return torch.tensor(self.centres, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Take what get_extra_state gave."""
        self.centres = [(Centres(*rows), Centres(*columns)) for rows, columns in state.tolist()]
        self.is_final = True

    def finish(self, centres: list[tuple[Centres, Centres]]) -> None:
        """Take for good where the cells of the layers look; see FeatureExtractor.centres."""
        self.centres = centres
        self.is_final = True

    def of(self, layer: int) -> tuple[Centres, Centres]:
        """The centres of rows and columns of what is drawn of a layer."""
        rows, columns = self.centres[layer]
        return rows.within(self.shift, 1), columns.within(self.shift, 1)

    def on_first(self, planes: Tensor, layer: int, grid: tuple[int, int]) -> Tensor:
        """A layer's planes [B, P, h, w] where the cells of the first layer look, [B, P, *grid]."""
        if layer == 0:
            return planes
        own, first = self.of(layer), self.of(0)
        rows, columns = (
            interpolation_on(planes.device, own[axis], planes.shape[2 + axis], first[axis], grid[axis])
            for axis in (0, 1)
        )
        with full_float32(planes.device):  # channels last, as networks leave them: a product per row, not per channel
            cells = planes.permute(0, 2, 3, 1).float()  # [B, h, w, P]
            by_rows = (rows @ cells.flatten(2)).unflatten(2, cells.shape[2:])  # [B, H, w, P]
            return (columns @ by_rows).permute(0, 3, 1, 2).to(planes.dtype)


def interpolation(own: Centres, cells: int, wanted: Centres, count: int) -> Tensor:
    """The linear weights of cells at so many wanted places, float64 [count, cells]; beyond the last cell its value."""
    places = (wanted.offset + wanted.stride * torch.arange(count, dtype=torch.float64) - own.offset) / own.stride
    places = places.clamp(0, cells - 1).unsqueeze(1)
    return (1 - (places - torch.arange(cells, dtype=torch.float64)).abs()).clamp(min=0)


@kept_on_device
def interpolation_on(own: Centres, cells: int, wanted: Centres, count: int) -> Tensor:
    """As interpolation, in float32, on a device given before the other arguments."""
    return interpolation(own, cells, wanted, count).float()


def resampled(planes: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Planes [..., h, w] by float32 weights of their rows [H, h] and columns [W, w]: float32 [..., H, W]."""
    with full_float32(planes.device):
        return rows @ planes.float() @ columns.T


@torch.enable_grad()
def middles(
    network: nn.Module,
    read: Callable[[Tensor], Sequence[Tensor]],
    size: tuple[int, int],
    traced: Sequence[tuple[Centres, Centres]],
    device: torch.device | str,
) -> list[tuple[Centres, Centres]]:
    """Where cells look by their gradients: the centroid of its squares over the pixels of noise, less i strides.

    The means are over cells around the middle of the image, in pairs on both sides of it, rounded to a quarter of a
    pixel, so that they do not depend on how a device rounds.

    Args:
        network: what is measured, on the device.
        read: the maps [B, C, h, w] of layers that it makes of images [B, 3, H, W].
        size: height and width of the images.
        traced: of each layer what tracing found, of which the strides are kept; all of it where there is no gradient.
        device: where the network is.
    """
    was_training, generator = network.training, torch.Generator().manual_seed(0)
    network.eval()
    found: list[list[Tensor]] = [[] for _ in traced]
    with full_float32(device):
        for i in range(PASSES):
            noise = torch.randn(IMAGES, 3, *size, generator=generator)
            noise = noise if i % 2 else 3 * F.avg_pool2d(noise, 5, 1, 2)  # edges look like this more than like that
            images = noise.to(device).requires_grad_(True)
            for own, maps, centres in zip(found, read(images), traced, strict=True):
                cells = [_around_middle(length, generator) for length in maps.shape[2:]]
                chosen = maps[torch.arange(IMAGES), :, cells[0], cells[1]]  # [IMAGES, C]
                directions = torch.randn(chosen.shape, generator=generator).to(device)
                (gradients,) = torch.autograd.grad((chosen * directions).sum(), images, retain_graph=True)
                own.append(_centroids(gradients.cpu().double()) - _strides(cells, centres))
    network.train(was_training)
    result = []
    for own, centres in zip(found, traced, strict=True):
        offsets = (torch.cat(own).mean(dim=0) * 4).round() / 4
        result.append(
            tuple(
                Centres(offset, axis.stride) if offset == offset else axis
                for offset, axis in zip(offsets.tolist(), centres, strict=True)
            )
        )
    return result


def _around_middle(length: int, generator: torch.Generator) -> Tensor:
    """Cells in the middle third of so many, int64 [IMAGES]: half of them drawn, half their mirror images."""
    drawn = torch.randint(length // 3, length - length // 3, (IMAGES // 2,), generator=generator)
    return torch.cat([drawn, length - 1 - drawn])


def _centroids(gradients: Tensor) -> Tensor:
    """Rows and columns of the centroids of squared gradients [B, 3, H, W]: [B, 2]; NaN where there are none."""
    energy = gradients.square().sum(dim=1)
    sums = (energy.sum(dim=2), energy.sum(dim=1))
    return torch.stack([own @ torch.arange(own.shape[1]).double() / own.sum(dim=1) for own in sums], dim=1)


def _strides(cells: Sequence[Tensor], centres: tuple[Centres, Centres]) -> Tensor:
    return torch.stack([own * axis.stride for own, axis in zip(cells, centres, strict=True)], dim=1)
