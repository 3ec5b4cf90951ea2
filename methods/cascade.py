"""How CPR learns: codes and foreground of the training images at once, then its local branches by made defects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from backbones.bank import free_on
from datasets import normalised, pixels_of
from detection import EndOfPass, autocast, gradient_scaler, learn
from detection.neighbours import k_means
from detection.pasting import Defective, pasted
from detection.textures import Textures
from detection.variance import require_finite
from errors import DataError
from methods.foreground import MOST, STARTS, foreground_map, ring_and_middle
from methods.pairs import Pairs, draw_pairs, pair_loss
from methods.retrieval import divergences, nearest_images

CELLS = 50_000  # that codes are learned from
BATCH = 8  # images that the backbone sees at once where nothing learns
DEFECTIVE = 0.9  # of the queries
OWN_SHARE = 0.5  # of an object's defects, those that are filled with its own tiles
CHANGED = 0.3  # of images, those with specks, and likewise those that are lighter or darker
SPECKS, LIGHTER = 0.03, 0.1  # at most: share of the pixels, share of the lightness
BLUR = 1 / 25  # of a foreground's side, sigma


class Cascade(Protocol):
    """What training needs of the detector; methods/cpr.py says what these are."""

    options: Any
    seed: int
    precision: torch.dtype
    local: nn.ModuleList
    centres: Tensor
    foregrounds: Tensor
    foreground_weight: Tensor
    foreground_bias: Tensor

    @property
    def device(self) -> torch.device: ...
    @property
    def is_object(self) -> bool: ...
    @property
    def kept(self) -> list[str]: ...
    def maps(self, pixels: Tensor) -> list[Tensor]: ...
    def histograms_of(self, first: Tensor) -> Tensor: ...
    def foreground_of(self, first: Tensor) -> Tensor: ...
    def at_pixels(self, cells: Tensor) -> Tensor: ...


class References(NamedTuple):
    """What training refers to of N training images.

    Attributes:
        pictures: RGB, uint8 [N, 3, H, W].
        histograms: (1) in methods/cpr.py, [N, 25, M + 1].
        foregrounds: as sharpened, float32 [N, h, w].
    """

    pictures: Tensor
    histograms: Tensor
    foregrounds: Tensor

    @classmethod
    def of(cls, detector: Cascade, pictures: Tensor) -> References:
        """Of pictures, by a detector that has learned codes and foreground."""
        found = [(detector.histograms_of(one), _sharpened(detector, one)) for one in _first_maps(detector, pictures)]
        return cls(pictures, *(torch.cat(part) for part in zip(*found, strict=True)))


class StepStats(NamedTuple):
    """What one step says of itself: L, and its two terms."""

    loss: Tensor
    alike: Tensor
    unlike: Tensor


class Trainer:
    """AdamW on the local branches, by queries with made defects and references like them.

    Args:
        detector: that has begun.
        references: that it began with; None where load_state_dict brings them.
    """

    def __init__(self, detector: Cascade, references: References | None) -> None:
        self.detector = detector
        self.references = references
        own = detector.options
        self.optimizer = torch.optim.AdamW(
            detector.local.parameters(), lr=own.lr, weight_decay=own.weight_decay, fused=True
        )
        self.scaler = gradient_scaler(detector.device, detector.precision)
        self.textures = Textures(own.texture_dir)
        self.step = 0  # seeds what is random in the next

    def steps(self, batches: Iterable[Tensor]) -> Iterator[StepStats]:
        """A step per batch of pixels [B, 3, H, W]; as made defects, they are the queries."""
        own = self.detector
        for batch in batches:
            rng = np.random.default_rng([own.seed, self.step])
            queries, references, pairs = self._drawn(batch, rng)
            pixels = normalised(torch.cat([queries, references]).to(own.device))
            with autocast(own.device, own.precision):
                with torch.no_grad():
                    maps = own.maps(pixels)
                features = [branch(one).float() for branch, one in zip(own.local, maps, strict=True)]
            alike, unlike = pair_loss(features, maps, Pairs(*(one.to(own.device) for one in pairs)))
            loss = alike + unlike
            learn(loss, [self.optimizer], own.precision, self.scaler)
            self.step += 1
            yield StepStats(*(one.detach() for one in (loss, alike, unlike)))

    def end_pass(self) -> EndOfPass:
        """The learning rate stays."""
        return EndOfPass()

    def state_dict(self) -> dict[str, Any]:
        assert self.references is not None
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "references": self.references._asdict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        device = self.detector.device
        pictures, *others = (state["references"][name] for name in References._fields)
        self.references = References(pictures.cpu(), *(one.to(device) for one in others))

    @torch.no_grad()
    def _drawn(self, batch: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor, Pairs]:
        """Queries and references, uint8 [B, 3, H, W], and the pairs of places in them."""
        own, kept = self.detector, self.references
        assert kept is not None
        pictures, histograms, foregrounds = References.of(own, pixels_of(batch))
        most = min(own.options.references + 1, len(kept.pictures))
        is_same = (histograms.unsqueeze(1) == kept.histograms).flatten(2).all(dim=2)  # others may be as near
        near = nearest_images(divergences(histograms, kept.histograms).masked_fill(is_same, -torch.inf), most)
        near = near[:, 1:] if most > 1 else near  # the first is the image itself
        place = torch.from_numpy(rng.integers(near.shape[1], size=(len(near), 1))).to(near.device)
        chosen = near.gather(1, place)[:, 0]
        foregrounds = torch.maximum(foregrounds, kept.foregrounds[chosen])
        weights = own.at_pixels(foregrounds).cpu().numpy()
        queries, pairs = [], []
        for pixels, weight in zip(pictures.permute(0, 2, 3, 1).cpu().numpy(), weights, strict=True):
            query = self._query(pixels, weight > 0.5, rng)
            queries.append(_changed(query.pixels, rng))
            pairs.append(draw_pairs(query.mask, weight if own.is_object else None, own.options.pairs, rng))
        references = [_changed(one, rng) for one in kept.pictures[chosen.cpu()].permute(0, 2, 3, 1).numpy()]
        stacked = Pairs(*(torch.stack(part) for part in zip(*pairs, strict=True)))
        return _stacked(queries), _stacked(references), stacked

    def _query(self, pixels: NDArray[np.uint8], allowed: NDArray[np.bool_], rng: np.random.Generator) -> Defective:
        if rng.random() >= DEFECTIVE:
            return Defective(pixels, np.zeros(pixels.shape[:2], bool))
        return pasted(pixels, allowed, self.textures, OWN_SHARE if self.detector.is_object else 0.0, rng)


def read_references(detector: Cascade, embeddings: Iterable[Tensor]) -> Tensor:
    """All training images of one pass, RGB uint8 [N, 3, H, W] in host memory.

    Raises:
        DataError: what is kept of them does not fit memory.
    """
    pictures = torch.cat([pixels_of(batch).cpu() for batch in embeddings])
    kept = len(pictures) * sum(getattr(detector, name)[0].nbytes for name in detector.kept)
    if kept > (free := free_on(detector.device)):
        raise DataError(
            f"the features of {len(pictures)} training images would take {kept / 2**30:.1f} GiB of memory, and "
            f"{free / 2**30:.1f} GiB are free: lower --local_dim or --imagesize, or name coarser layers"
        )
    return pictures


def learn_cells(detector: Cascade, pictures: Tensor) -> None:
    """Learn the codes and, of objects, the foreground of pictures.

    Raises:
        DataError: as foreground_map.
    """
    rng = np.random.default_rng(detector.seed)
    height, width = detector.foregrounds.shape[1:]
    places = [np.ones((height, width), bool), *ring_and_middle(height, width)]
    most = [CELLS, 4 * MOST, 4 * MOST]
    drawn: list[list[NDArray[np.float32]]] = [[], [], []]

    for maps in _first_maps(detector, pictures):
        for one in maps.permute(0, 2, 3, 1).cpu().numpy():
            for where, count, found in zip(places, most, drawn, strict=True):
                rows = one[where]
                found.append(rows[rng.permutation(len(rows))[: -(-count // len(pictures))]])
    cells, ring, middle = (np.concatenate(found) for found in drawn)
    require_finite(torch.from_numpy(cells))
    cells = cells[rng.permutation(len(cells))[:CELLS]]
    detector.centres.copy_(k_means(torch.from_numpy(cells), detector.options.codes, detector.seed, STARTS))
    if detector.is_object:
        weight, bias = foreground_map(cells, ring, middle, detector.seed)
        detector.foreground_weight.copy_(weight)
        detector.foreground_bias.copy_(bias)


@torch.no_grad()
def _first_maps(detector: Cascade, pictures: Tensor) -> Iterator[Tensor]:
    """The first layer's maps [b, C, h, w] of pictures, few at a time."""
    for part in pictures.split(BATCH):
        with autocast(detector.device, detector.precision):
            maps = detector.maps(normalised(part.to(detector.device)))
        yield maps[0]


def _sharpened(detector: Cascade, first: Tensor) -> Tensor:
    """Foregrounds [B, h, w] as training takes them: blurred, and nearer to 0 and 1."""
    own = detector.foreground_of(first)
    if not detector.is_object:
        return own
    blurred = [cv2.GaussianBlur(one, (0, 0), max(one.shape) * BLUR) for one in own.cpu().numpy()]
    return torch.sigmoid(10 * torch.from_numpy(np.stack(blurred)) - 5).to(own.device)


def _changed(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A picture [H, W, 3] with specks of salt and pepper, and lighter or darker, each at times."""
    if rng.random() < CHANGED:
        pixels = pixels.copy()
        is_speck = rng.random(pixels.shape[:2]) < rng.uniform(0, SPECKS)
        pixels[is_speck] = 255 * rng.integers(0, 2, (int(is_speck.sum()), 1))
    if rng.random() < CHANGED:
        hls = cv2.cvtColor(pixels, cv2.COLOR_RGB2HLS)
        hls[..., 1] = np.rint(hls[..., 1] * rng.uniform(1 - LIGHTER, 1 + LIGHTER)).clip(0, 255)
        pixels = cv2.cvtColor(hls, cv2.COLOR_HLS2RGB)
    return pixels


def _stacked(pictures: list[NDArray[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
