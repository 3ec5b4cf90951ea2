"""What a detector says of images."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Prediction:
    """Scores and, of most detectors, maps; higher is more anomalous. `scores, maps = prediction` takes both.

    Attributes:
        scores: of images, float32 [B].
        maps: anomaly maps, float32 [B, H, W], NaN where an image is of no interest; None of a detector that draws none.
        terms: what the scores are made of, by name, float32 [B] each; empty where they have no parts.
    """

    scores: Tensor
    maps: Tensor | None = None
    terms: Mapping[str, Tensor] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Tensor | None]:
        return iter((self.scores, self.maps))

    @classmethod
    def joined(cls, parts: Sequence["Prediction"]) -> "Prediction":
        """One of several batches, at least one, by one detector."""
        first = parts[0]
        if len(parts) == 1:
            return first
        terms = {name: torch.cat([part.terms[name] for part in parts]) for name in first.terms}
        maps = None if first.maps is None else torch.cat([part.maps for part in parts])
        return cls(torch.cat([part.scores for part in parts]), maps, terms)

    def within(self, interest: Tensor | None = None) -> "Prediction":
        """The same without pixels that are of no interest by a mask, bool [B, H, W]; None: all are."""
        if interest is None or self.maps is None:
            return self
        return Prediction(self.scores, torch.where(interest, self.maps, torch.nan), self.terms)

    def detached(self) -> "Prediction":
        """The same without gradients."""
        maps = None if self.maps is None else self.maps.detach()
        return Prediction(self.scores.detach(), maps, {name: own.detach() for name, own in self.terms.items()})
