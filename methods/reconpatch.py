import torch
from torch import Tensor


def pairwise_similarity(squared: Tensor, sigma: float | Tensor) -> Tensor:
    return (-squared / sigma).exp()


def contextual_similarity(squared: Tensor, k: int) -> Tensor:
    n = len(squared)
    order = squared.clone().fill_diagonal_(-1).sort(dim=1, stable=True).indices  # a patch is its own first neighbour
    near = _members(order[:, :k], n)
    half = _members(order[:, : max(1, round(k / 2))], n)
    mutual = half * half.T
    common = near @ near.T / k * near
    expanded = mutual @ common / mutual.sum(dim=1, keepdim=True)
    return (expanded + expanded.T) / 2


def relaxed_contrastive_loss(z: Tensor, omega: Tensor, margin: float) -> Tensor:
    squared = squared_distances(z)
    apart = squared > 0
    distances = torch.where(apart, torch.where(apart, squared, 1).sqrt(), 0)  # the root of 0 has no gradient
    delta = distances / distances.mean(dim=1, keepdim=True).clamp(min=1e-12)
    return (omega * delta.square() + (1 - omega) * (margin - delta).clamp(min=0).square()).sum() / len(z)


def squared_distances(z: Tensor) -> Tensor:
    centred = z - z.detach().mean(dim=0)
    norms = centred.square().sum(dim=1)
    squared = (norms.unsqueeze(1) + norms - 2 * centred @ centred.T).clamp(min=0)
    return squared.masked_fill(torch.eye(len(z), dtype=torch.bool, device=z.device), 0)


def _members(neighbours: Tensor, n: int) -> Tensor:
    return torch.zeros(n, n, device=neighbours.device).scatter_(1, neighbours, 1)
