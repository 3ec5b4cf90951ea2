"""Neighbours among features: the nearest of a table, how far they are, and the means of k-means."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.devices import is_on_processor
from detection.precision import product_type

BLOCK = 2**24  # distances that are held at once: 64 MiB
CACHED = 2**20  # by a processor, which reads them again from its cache, and whose allocator need not ask the system
TINY = 1e-12
FOLD = 8  # columns that the highest is first taken of
GROUP = 64  # centres whose smallest distance stands for them in the search


@torch.no_grad()
def nearest(features: Tensor, centres: Tensor, k: int) -> Tensor:
    """Indices [B, N, k] of the k nearest centres [M, D'] of features [B, N, D'], the nearest first.

    At most BLOCK distances are held at once, or those of a patch of each image. Sorting out k of all M centres would
    take longer than the distances: the k nearest lie in the k groups of GROUP centres with the smallest minima.
    """
    padding = -len(centres) % GROUP
    norms = F.pad(centres.square().sum(dim=1), (0, padding), value=torch.inf)
    table = (-2 * F.pad(centres, (0, 0, 0, padding))).T
    images = 1 if torch.compiler.is_compiling() else len(features)  # a traced graph takes any number
    rows = max(1, held_at_once(features) // (images * len(norms)))

    def search(part: Tensor) -> Tensor:
        distances = torch.addmm(norms, part.flatten(0, 1), table)  # squared, but for |features|^2
        grouped = distances.unflatten(-1, (-1, GROUP))
        groups = _smallest(grouped.amin(dim=-1), min(k, grouped.shape[1]))
        candidates = grouped.gather(1, groups.unsqueeze(-1).expand(-1, -1, GROUP)).flatten(1)
        places = _smallest(candidates, k)
        return (groups.gather(1, places // GROUP) * GROUP + places % GROUP).unflatten(0, part.shape[:2])

    return torch.cat([search(part) for part in features.split(rows, dim=1)], dim=1)


class SearchTable(NamedTuple):
    """Centres as closest_of_first meets them: m = (c - middle) / size, without their mean and size.

    Numbers have so the digits that the differences need.

    Attributes:
        centres: m [K, D], of the type that products have.
        half: |m|^2 / 2 [K], float32.
        middle: [D].
        size: [], the root of the mean of |c - middle|^2.
    """

    centres: Tensor
    half: Tensor
    middle: Tensor
    size: Tensor


@torch.no_grad()
def search_table(centres: Tensor) -> SearchTable:
    """What closest_of_first needs of centres [K, D]."""
    centres = centres.float()
    middle = centres.sum(dim=0) / len(centres)
    centres = centres - middle
    size = torch.linalg.vector_norm(centres) / len(centres) ** 0.5 + TINY
    centres = centres / size
    half = centres.square().sum(dim=1) / 2
    return SearchTable(centres.to(product_type(centres.device)), half, middle, size)


def closest(features: Tensor, centres: Tensor) -> Tensor:
    """Indices [N] of the centres [K, D] that are nearest to features [N, D], as far as products can tell them apart.

    As closest_of_first, of all centres.
    """
    return closest_of_first(features, search_table(centres), [len(centres)])[0]


@torch.no_grad()
def closest_of_first(features: Tensor, table: SearchTable, counts: Sequence[int]) -> list[Tensor]:
    """For every count, the nearest of so many first centres: indices [N] of a table's K, of features [N, D].

    The products are of the type that autocast asks for, of which bfloat16 takes a centre that lies a little farther for
    the nearest now and then. At most BLOCK distances are held at once; a traced graph takes any N, in one block.
    """
    centres, half, middle, size = table

    def search(part: Tensor) -> Tensor:
        near = F.linear((part - middle) / size, centres).float().sub_(half)  # (|q|^2 - |q - m_k|^2) / 2
        return torch.stack([_highest(near[:, :count]) for count in counts])

    if torch.compiler.is_compiling():
        return list(search(features))
    rows = max(1, held_at_once(features) // len(centres))
    return list(torch.cat([search(part) for part in features.split(rows)], dim=1))


def held_at_once(features: Tensor) -> int:
    """How many distances of features are held at once."""
    return min(BLOCK, CACHED) if is_on_processor(features) else BLOCK


def _highest(values: Tensor) -> Tensor:
    """argmax of each row [N, K]: int64 [N].

    On a processor in two steps, of which the first, the highest of every FOLD columns that lie K / FOLD apart, is made
    for many columns at once: a fifth of argmax's own time.
    """
    if not is_on_processor(values):
        return values.argmax(dim=1)
    if missing := -values.shape[1] % FOLD:
        values = F.pad(values, (0, missing), value=-torch.inf)
    folded = values.unflatten(1, (FOLD, -1))
    columns = folded.amax(dim=1).argmax(dim=1)
    own = folded.gather(2, columns.view(-1, 1, 1).expand(-1, FOLD, 1))[:, :, 0]  # [N, FOLD]
    return own.argmax(dim=1) * folded.shape[2] + columns


def _smallest(values: Tensor, k: int) -> Tensor:
    """Where the k smallest of each row [N, n] are, the smallest first: [N, k]."""
    return values.argmin(dim=1, keepdim=True) if k == 1 else values.topk(k, dim=1, largest=False).indices


def squared_distances(features: Tensor, centres: Tensor, chosen: Tensor) -> Tensor:
    """|features - centres[chosen]|^2, [B, N, k], of features [B, N, D'] and indices [B, N, k].

    Of differences, which keep the digits that |a|^2 + |b|^2 - 2 a b loses between close features.
    """
    differences = (centres[one].sub_(features) for one in chosen.unbind(dim=-1))
    return torch.stack([torch.einsum("bnd,bnd->bn", one, one) for one in differences], dim=-1)


def k_means(rows: Tensor, clusters: int, seed: int, starts: int = 1) -> Tensor:
    """The means of clusters of rows [N, D], the best of so many starts by k-means++: [clusters, D]."""
    from sklearn.cluster import KMeans  # late: other commands need not wait for it
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # images of one colour have fewer places that differ
        found = KMeans(clusters, n_init=starts, max_iter=3000, random_state=seed).fit(rows.cpu().numpy())
    return torch.from_numpy(found.cluster_centers_).to(rows)
