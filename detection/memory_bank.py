"""Memory banks: normal patches that are kept, and how far others are from them (Roth et al., CVPR 2022, PatchCore).

methods/patchcore.py has the equations. A bank is filled with features as they are, or with what a function makes of
them, such as a whitening or a layer that was trained before.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from backbones import Features
from backbones.bank import free_on
from detection.coreset import (
    STARTING_POINTS,
    chosen_in,
    coreset,
    distances_from_all,
    distances_from_some,
    projected,
    random_rows,
)
from detection.interest import lowest_outside, unmasked
from detection.neighbours import nearest, squared_distances
from detection.prediction import Prediction
from errors import DataError, UsageError
from options import option

WORKING_MEMORY = 2**30  # bytes that patches to choose from may take: of more, so many are drawn evenly
MOST = 2**40  # patches of a bank
ROWS = 2**14  # that are transformed at once
SAME = 1e-4  # of patches' mean square, as far as one may lie from itself, for rounding
Transform = Callable[[Tensor], Tensor]  # of rows [N, D], of any type, into float32 [N, D']


@dataclass(frozen=True)
class BankOptions:
    """Options of a memory bank, the base of a detector's own."""

    sampler: Literal["identity", "greedy_coreset", "approx_greedy_coreset", "random"] = option(
        "approx_greedy_coreset",
        "Which patches are kept. identity: all; greedy_coreset: again and again the farthest from those before, first "
        "the farthest from all; approx_greedy_coreset: first the farthest from 10 random ones; random: any.",
    )
    percentage: float = option(
        0.1, "Share of the patches that is kept, where not all are.", "--percentage", "-p", above=0, at_most=1
    )
    bank_size: int | None = option(None, "So many patches are kept, in place of --percentage.", at_least=1)
    anomaly_scorer_num_nn: int = option(1, "A patch's score is of so many of its nearest in the bank.", at_least=1)
    reweight: int = option(
        0,
        "2 or more: the paper's reading in place of the program's. Distances are not squared, and image scores are "
        "weighed by how near the nearest patch's so many neighbours are.",
        at_least=0,
    )


@runtime_checkable
class Extensible(Protocol):
    """A detector that takes in further normal images without those that it was trained on."""

    def extend(self, embeddings: Collection[Tensor]) -> None:
        """Take in batches of what embed gives for them, of a known length.

        Raises:
            DataError: no memory for them.
        """


@runtime_checkable
class Forgetful(Protocol):
    """A detector that scores images that it was trained on as new ones, where it says that it can."""

    @property
    def forgets(self) -> bool:
        """Whether it can."""

    def scored_as_new(self, batches: Callable[[], Iterable[Features]]) -> Iterator[Prediction]:
        """Predictions of such images, each as if it had not been one of them.

        Args:
            batches: what embed gave for them; called as often as is needed.
        """


class BankScores(NamedTuple):
    """Scores of patches [B, N] and of images [B], float32."""

    patches: Tensor
    images: Tensor


class MemoryBank(nn.Module):
    """Patches of normal images, [M, D].

    Args:
        options: how many, which, and how scores are made.
        dimension: D.
        seed: of all that is random.

    Attributes:
        memory: the patches; as many as filling found.
        seen: how many patches they were chosen of.

    Raises:
        UsageError: options that do not go together.
    """

    def __init__(self, options: BankOptions, dimension: int, seed: int) -> None:
        super().__init__()
        self.options = options
        self.seed = seed
        if self.keeps_all and options.bank_size is not None:
            raise UsageError("--sampler identity keeps all patches: leave --bank_size out, or choose another --sampler")
        if options.reweight == 1:
            raise UsageError("--reweight 1 would make all scores 0: expected 0 or, to weigh them, 2 or more")
        if options.bank_size is not None:
            self._check_neighbours(options.bank_size, UsageError)
        self.register_buffer("memory", torch.empty(0, dimension))
        self.register_buffer("seen", torch.tensor(0))
        self._own: list[Tensor] | None = None  # see without_own

    @property
    def keeps_all(self) -> bool:
        """Whether every patch is kept."""
        return self.options.sampler == "identity"

    @property
    def shape(self) -> tuple[int | range, int]:
        """What the memory's shape may be, as in Detector.sized_by_data."""
        size, needed = self.options.bank_size, max(self.options.anomaly_scorer_num_nn, self.options.reweight)
        return range(needed, MOST) if size is None else size, self.memory.shape[1]

    @torch.no_grad()
    def fill(self, batches: Collection[Tensor], transform: Transform = Tensor.float) -> dict[str, float]:
        """Choose and keep patches of normal images.

        No more than WORKING_MEMORY is taken beside the bank: where all patches do not fit, they are chosen among as
        many as do, each as likely to be one of these as any other.

        Args:
            batches: features [B, ..., D]; read once.
            transform: what is made of them.

        Returns:
            The covering radius, by its name: how far any patch is from the nearest that is kept; of random ones, none.

        Raises:
            DataError: fewer patches than are asked for, or no memory for them.
        """
        rows, seen = self._drawn(batches, self._wanted)
        wanted = self._wanted(seen)  # batches of parts of images vary: more may be seen than the first lets expect
        return self._keep(rows, min(wanted, len(rows)) if wanted <= seen else wanted, seen, transform)

    @torch.no_grad()
    def extend(self, batches: Collection[Tensor], transform: Transform = Tensor.float) -> None:
        """Take in patches of further normal images.

        As many are kept as before, chosen among those and all further ones; only a bank that keeps all grows.

        Args:
            batches, transform: as of fill.

        Raises:
            DataError: no memory for them.
        """
        size = len(self.memory)
        rows, seen = self._drawn(batches, lambda further: further if self.keeps_all else size)
        before, both = int(self.seen), int(self.seen) + seen
        further = _transformed(rows, transform)
        if self.options.sampler == "random":  # each of both as likely as any other: the bank stands for those before
            stay = min(size, max(round(size * before / both), size - len(further)))
            order = torch.randperm(size, generator=torch.Generator().manual_seed(self.seed)).to(further.device)
            further = torch.cat([self.memory[order[:stay]], further[: size - stay]])
        else:
            further = torch.cat([self.memory, further])
        self._keep(further, len(further) if self.keeps_all else size, both)

    def forward(self, patches: Tensor, inside: Tensor | None = None) -> BankScores:
        """How far patches [B, N, D], float32 as the bank's are, lie from it.

        Where inside, bool [B, ...] of N patches each, is given, the others have the lowest score of those inside.
        """
        inside = None if inside is None else inside.flatten(1)
        if self._own is None:
            return self._scores(patches, inside, self.memory)
        masks = [None] * len(patches) if inside is None else inside.split(1)
        found = [self._scores(*one) for one in zip(patches.split(1), masks, map(self._less, self._own), strict=True)]
        return BankScores(*map(torch.cat, zip(*found, strict=True)))

    def _scores(self, patches: Tensor, inside: Tensor | None, memory: Tensor) -> BankScores:
        own = self.options
        chosen = nearest(patches, memory, own.anomaly_scorer_num_nn)
        squared = squared_distances(patches, memory, chosen)  # [B, N, k]
        if own.reweight == 0:
            scores = lowest_outside(squared.mean(dim=-1), inside)
            return BankScores(scores, scores.amax(dim=1))
        scores = lowest_outside(squared.sqrt().mean(dim=-1), inside)
        return BankScores(scores, reweighted(patches, scores, chosen[..., 0], memory, own.reweight))

    @contextmanager
    def without_own(self, own: list[Tensor]) -> Iterator[None]:
        """Score a batch of images, each by the patches that are not its own, bool [M]; by all, if few are left."""
        self._own = own
        try:
            yield
        finally:
            self._own = None

    def _less(self, own: Tensor) -> Tensor:
        """The bank without some of its patches, bool [M]."""
        others = self.memory[~own]
        return others if len(others) >= max(self.options.anomaly_scorer_num_nn, self.options.reweight) else self.memory

    def _wanted(self, patches: int) -> int:
        """How many of so many patches are to be kept."""
        own = self.options
        if self.keeps_all:
            return patches
        return int(patches * own.percentage) if own.bank_size is None else own.bank_size

    def _drawn(self, batches: Collection[Tensor], wanted: Callable[[int], int]) -> tuple[Tensor, int]:
        """Rows [n, D] to choose from in random order, at least those wanted, and of how many they are drawn."""
        stream = iter(batches)
        first = next(stream)
        rows, device = first.flatten(0, -2), first.device
        most = len(batches) * len(rows)  # the last batch may be smaller
        dimension = self.memory.shape[1]
        size = rows.shape[1] * rows.dtype.itemsize + 2 * 4 * chosen_in(dimension)  # of a row, and what it is chosen by
        held = max(MOST if self.keeps_all else wanted(most), WORKING_MEMORY // size)
        bank, free = 4 * wanted(most) * dimension, free_on(device)
        if (needed := bank + min(held, most) * size) > free:
            advice = "choose another --sampler" if self.keeps_all else "lower --percentage or --bank_size"
            raise DataError(
                f"a memory bank of {wanted(most)} patches of {dimension} values takes {bank / 2**30:.1f} "
                f"GiB, {needed / 2**30:.1f} GiB with the patches it is chosen from, and {free / 2**30:.1f} GiB are "
                f"free: {advice}"
            )
        seen = 0

        def counted() -> Iterator[Tensor]:
            nonlocal seen
            for batch in chain([first], stream):
                seen += batch[..., 0].numel()
                yield batch

        return random_rows(counted(), held, self.seed), seen

    def _keep(self, rows: Tensor, size: int, seen: int, transform: Transform = Tensor.float) -> dict[str, float]:
        """Choose so many of the rows, and keep what is made of them."""
        if not 1 <= size <= seen:
            asked = "bank_size" if self.options.bank_size is not None else "percentage"
            advice = "lower it" if size else "raise it, or give --bank_size"
            raise DataError(
                f"--{asked} {getattr(self.options, asked)} would keep {size} of the {seen} patches of the normal "
                f"images: {advice}"
            )
        self._check_neighbours(size, DataError)
        radius = {}
        if self.keeps_all:
            radius = {"covering_radius": 0.0}
        elif self.options.sampler == "random":
            rows = rows[:size]
        else:
            picks = coreset(*self._start(projected(rows, self.seed, transform), size))
            rows, radius = rows[picks.rows], {"covering_radius": picks.radius}
        self.memory = _transformed(rows, transform)
        self.seen.fill_(seen)
        return radius

    def _start(self, features: Tensor, size: int) -> tuple[Tensor, int, Tensor]:
        """The arguments of coreset."""
        if self.options.sampler == "greedy_coreset":
            return features, size, distances_from_all(features)
        order = torch.randperm(len(features), generator=torch.Generator().manual_seed(self.seed))
        return features, size, distances_from_some(features, order[:STARTING_POINTS].to(features.device))

    def _check_neighbours(self, size: int, error: type[Exception]) -> None:
        """See that a bank of a size has the neighbours that scores need."""
        for name in ("anomaly_scorer_num_nn", "reweight"):
            if (count := getattr(self.options, name)) > size:
                raise error(
                    f"a memory bank of {size} patches has fewer than --{name} {count}: lower that, or keep more"
                )


def reweighted(patches: Tensor, scores: Tensor, closest: Tensor, memory: Tensor, b: int) -> Tensor:
    """Image scores (6) of the paper's Eq. 7, [B].

    Args:
        patches: [B, N, D].
        scores: of them, distances that are not squared, [B, N].
        closest: the index of the patch of the bank that is nearest to each, [B, N].
        memory: the bank, [M, D].
        b: how many neighbours of the nearest patch count, itself among them; 2 to M.
    """
    place = scores.argmax(dim=1, keepdim=True)  # [B, 1]
    patch = patches.gather(1, place.unsqueeze(2).expand(-1, -1, patches.shape[2]))  # o*, [B, 1, D]
    own = closest.gather(1, place)  # m*, [B, 1]
    neighbours = torch.cat([own.unsqueeze(2), nearest(memory[own], memory, b)], dim=2)  # m*, and N_B(m*): [B, 1, 1 + B]
    distances = squared_distances(patch, memory, neighbours).sqrt().squeeze(1)
    weight = 1 - (distances[:, 0] - distances[:, 1:].logsumexp(dim=1)).exp()  # exp alone may be infinite
    return weight * scores.amax(dim=1)


@torch.no_grad()
def owners_of(memory: Tensor, images: Iterable[Tensor]) -> Tensor:
    """Of which image every patch of a memory is, int64 [M]; -1: of none of them.

    Args:
        memory: float32 [M, D].
        images: batches of patches [B, N, D], float32 as those of the memory.

    Returns:
        The image with the patch that is nearest to it, if they are equal but for rounding; of several, the first.
    """
    owners = memory.new_full((len(memory),), -1, dtype=torch.int64)
    least = memory.new_full((len(memory),), SAME) * memory.square().sum(dim=1).mean()
    bank = memory.unsqueeze(0)
    for i, patches in enumerate(one for batch in images for one in batch):
        distances = squared_distances(bank, patches, nearest(bank, patches, 1)).flatten()
        is_nearer = distances < least
        owners[is_nearer] = i
        least = torch.where(is_nearer, distances, least)
    return owners


def with_own(batches: Iterable[Features], owners: Tensor) -> Iterator[tuple[Features, list[Tensor]]]:
    """Batches of images, and of every image which patches of a memory are its own, bool [M], by owners_of."""
    first = 0
    for batch in batches:
        following = first + len(unmasked(batch)[0])
        yield batch, [owners == i for i in range(first, following)]
        first = following


def _transformed(rows: Tensor, transform: Transform) -> Tensor:
    """What a function makes of rows, few at a time."""
    return torch.cat([transform(part) for part in rows.split(ROWS)])
