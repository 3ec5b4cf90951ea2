"""LogicRD: reverse distillation that knows the whole scene, for logical anomalies.

After Yang, Liao, Zhang and Zhao: efficient logical anomaly detection based on reverse distillation (Journal of Computer
Applications, 2025, DOI 10.11772/j.issn.1001-9081.2025020229), of which the abstract alone is known to us; see
methods/semantics.py for what is published and what is ours. Beside (1) to (4) of methods/rd.py:

    G_l, v = semantics(F)                                              global semantics, (5a) to (5c) there    (5)
    S = decoder(bottleneck(F + G)), every level's map compensated by the detail of F_l, (6a) to (6c) there     (6)
    d = sqrt((v - m)^T C^-1 (v - m))                                   mean m, shrunk covariance C of normals  (7)
    image score = z(max of the map) + z(d)                             z standardised on held-out normals      (8)
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from backbones import Features
from backbones.float32 import full_float32
from backbones.resizing import resized
from detection import Normal, Passes, Prediction, autocast
from detection.anomaly_map import highest
from detection.interest import unmasked
from detection.variance import known_variance
from methods import rd
from methods.rd import ReverseDistillation, difference_maps, distillation_loss, teacher_maps
from methods.semantics import QUARTERS, CompensationPathway, GlobalSemantics, area_means, corrupted, token_grid
from options import option

TERMS = "map_score", "semantic_score"
FOLDS = 5
LEAST_STD = (0.01, 0.1)  # of map and distance: what hardly moves among a few normal images must not rule the score


@dataclass(frozen=True)
class Options(rd.Options):
    """LogicRD: reverse distillation that also knows the whole scene, for parts that are missing, too many or
    swapped.
    """

    no_gse: bool = option(False, "Without global semantics, which tell every level of the whole image.")
    no_fcp: bool = option(False, "Without the pathway that brings fine detail to the student.")
    no_nii: bool = option(False, "Without the gate that keeps anomalous detail from that pathway.")
    no_mahalanobis: bool = option(False, "Score images by their maps alone, not by their semantics too.")


class LogicRD(ReverseDistillation):
    """Reverse distillation with global semantics, compensated detail, and an evaluation by map and semantics.

    Args:
        backbone, layers, image_size, precision, seed, options: see ReverseDistillation. Without global semantics their
            vector is made of the bottleneck's embedding; without compensated detail there is no gate either.
    """

    Options = Options
    DATASET_DEFAULTS: ClassVar = {**ReverseDistillation.DATASET_DEFAULTS, "train_val_split": 0.9}  # for (8)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        own = self.options
        infos = self.backbone.layer_info(self.layers, self.image_size)
        self.grid = token_grid(infos)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.semantics = None if own.no_gse else GlobalSemantics(infos, self.grid)
            pathways = (
                [] if own.no_fcp else [CompensationPathway(info.channels, self.grid, not own.no_nii) for info in infos]
            )
        self.pathways = nn.ModuleList(pathways)
        self.gated = not (own.no_fcp or own.no_nii)
        self.by_semantics = not own.no_mahalanobis
        if self.by_semantics:
            size = 2 * infos[-1].channels * math.prod(QUARTERS) if own.no_gse else self.semantics.dimensions
            self.register_buffer("mean", torch.zeros(size))
            self.register_buffer("precision_matrix", torch.zeros(size, size))
            self.register_buffer("normal_scores", torch.tensor([[0.0, 1.0]] * 2))  # mean and std of map and semantics

    def passes_of(self, has_held_out: bool) -> Passes:
        """One per epoch, and one for the statistics of normal images."""
        return Passes(settling=int(self.by_semantics))

    def loss(self, embeddings: Features, generator: torch.Generator) -> Tensor:
        """L (2); the gate learns on corrupted detail."""
        maps, interest = unmasked(embeddings)
        teacher = teacher_maps(maps)
        details = corrupted(teacher, self.grid, generator) if self.gated else teacher
        return distillation_loss(teacher, self._student_maps(teacher, details)[0], interest)

    def settle(self, *classes: Normal) -> Mapping[str, float]:
        """Take (7) from the training images, and (8) from images that neither training nor C knows.

        Where fewer than two are held out, (8) comes from the training images, with distances by covariances without
        them; training knows them all the same, and new images score higher.
        """
        if not self.by_semantics:
            return {}
        (own,) = classes
        scores, vectors = self._highest_and_vectors(own.train)
        unseen_scores, unseen = self._highest_and_vectors(own.held_out)
        mean, precision = shrunk(vectors)
        self.mean.copy_(mean)
        self.precision_matrix.copy_(precision)
        if len(unseen) > 1:
            scores, distances = unseen_scores, mahalanobis(unseen, mean, precision)
        else:
            distances = _cross_fitted(vectors)
        for row, term, least in zip(self.normal_scores, (scores, distances), LEAST_STD, strict=True):
            row.copy_(torch.stack([term.mean(), term.std(unbiased=False).clamp(min=least)]))
        return {}

    def forward(self, embeddings: Sequence[Tensor], interest: Tensor | None = None) -> Prediction:
        """Maps (4) and image scores (8)."""
        maps, vectors = self._maps_and_vectors(embeddings, interest)
        most = highest(maps, interest)
        if not self.by_semantics:
            return Prediction(most, maps)
        terms = torch.stack([most, mahalanobis(vectors, self.mean, self.precision_matrix)])  # [2, B]
        mean, std = self.normal_scores.unsqueeze(-1).unbind(1)
        terms = (terms - mean) / std
        return Prediction(terms.sum(dim=0), maps, dict(zip(TERMS, terms, strict=True)))

    def half(self) -> "LogicRD":
        """As in nn.Module, but for semantics and their statistics: distances need more digits."""
        for module in (self.backbone, self.student, self.pathways):
            module.half()
        return self

    def _highest_and_vectors(self, embeddings: Iterable[Features]) -> tuple[Tensor, Tensor]:
        """The maxima [N] of the maps (4) and the semantic vectors [N, D] of all batches; N may be 0."""
        found, vectors = [self.mean.new_empty(0)], [self.mean.new_empty(0, len(self.mean))]
        for batch in embeddings:
            features, interest = unmasked(batch)
            with autocast(self.device, self.precision):
                maps, own = self._maps_and_vectors(features, interest)
            found.append(highest(maps, interest))
            vectors.append(own)
        return torch.cat(found), torch.cat(vectors)

    def _maps_and_vectors(self, embeddings: Sequence[Tensor], interest: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Anomaly maps (4) [B, H, W] and semantic vectors [B, D], float32."""
        teacher = teacher_maps(embeddings)
        student, vectors = self._student_maps(teacher, teacher)
        return difference_maps(teacher, student, self.image_size, self.alignment, interest), vectors

    def _student_maps(self, teacher: Sequence[Tensor], details: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """S (6) and v (5) of the teacher's maps, with details read off others of their shapes."""
        sources = list(teacher)
        if self.semantics is not None:
            levels, vectors = self.semantics([own.float() for own in teacher])
            sources = [  # F_l + G_l: [B, C_l, H_l, W_l]
                own + resized(level, own.shape[-2:]).to(own.dtype) for own, level in zip(teacher, levels, strict=True)
            ]
        embedding = self.student.bottleneck(sources)  # [B, 2 C_L, H_L / 2, W_L / 2]
        if self.semantics is None:
            vectors = area_means(embedding.float(), QUARTERS).flatten(1)

        def compensate(level: int, own: Tensor) -> Tensor:
            return self.pathways[level](details[level], own)

        return self.student.decoder(embedding, compensate if self.pathways else None), vectors


def shrunk(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """m [D] and C^-1 [D, D] of (7), C shrunk as by Ledoit and Wolf (2004), of vectors [N, D], at least one; float32.

    Two vectors say nothing of the error of their covariance, by which they shrink it: it is shrunk by half.
    """
    from sklearn.covariance import LedoitWolf  # late: other commands need not wait for it

    rows = vectors.double().cpu()
    if len(rows) > 2:
        estimate = LedoitWolf(store_precision=False).fit(rows.numpy())
        mean, covariance = torch.from_numpy(estimate.location_), torch.from_numpy(estimate.covariance_)
    else:
        mean = rows.mean(0)
        covariance = (rows - mean).T @ (rows - mean) / len(rows)
        covariance = (covariance + covariance.diagonal().mean() * torch.eye(len(mean), dtype=covariance.dtype)) / 2
    variance = covariance.diagonal()
    variance.copy_(known_variance(variance, mean))
    variance.add_(variance.mean() * 1e-9)
    precision = torch.cholesky_inverse(torch.linalg.cholesky(covariance))
    return mean.to(vectors), precision.to(vectors)


def _cross_fitted(vectors: Tensor) -> Tensor:
    """d (7) of vectors [N, D], each by mean and covariance of the others' folds; of fewer than three, of them all."""
    if len(vectors) < 3:
        return mahalanobis(vectors, *shrunk(vectors))
    folds = torch.arange(len(vectors), device=vectors.device) % min(FOLDS, len(vectors))
    distances = torch.empty_like(vectors[:, 0])
    for fold in folds.unique():
        left_out = folds == fold
        distances[left_out] = mahalanobis(vectors[left_out], *shrunk(vectors[~left_out]))
    return distances


def mahalanobis(vectors: Tensor, mean: Tensor, precision: Tensor) -> Tensor:
    """d (7) of vectors [N, D], mean [D] and precision C^-1 [D, D]: [N]."""
    with full_float32(vectors.device):
        centred = vectors - mean  # [N, D]
        return ((centred @ precision) * centred).sum(dim=1).clamp(min=0).sqrt()
