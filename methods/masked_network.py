"""The Transformer of methods/multimodal.py, whose equations (1) to (3) it computes.

It sees some tokens of a sample, and says what the others are and whether the sample was tampered with.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.tokens import ImageTokens, TableTokens

TOKENS_AT_ONCE = 512  # of one sample under several masks
IMAGE, TABLE = 0, 1  # modalities


class Network(nn.Module):
    """Pre-norm Transformer encoder over a class token and the tokens of one part, with two heads.

    Args:
        parts: the tokens of every part.
        dim, depth, heads, dropout: of the encoder.
    """

    def __init__(
        self, parts: Sequence[ImageTokens | TableTokens], dim: int, depth: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.hidden = nn.Parameter(torch.randn(dim) * 0.02)  # in place of a hidden token
        self.start = nn.Parameter(torch.randn(dim) * 0.02)
        self.modalities = nn.Parameter(torch.randn(2, dim) * 0.02)
        self.positions = nn.ParameterList(torch.randn(1 + own.masks.shape[1], dim) * 0.02 for own in parts)
        layer = nn.TransformerEncoderLayer(dim, heads, 4 * dim, dropout, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, nn.LayerNorm(dim), enable_nested_tensor=False)
        self.tampered = nn.Linear(dim, 1)

    def forward(self, part: int, values: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """x_hat and logits y [B] (1) of a part's values x whose tokens in masks m [B, n] are hidden."""
        own = self.parts[part]
        tokens = torch.where(masks.unsqueeze(-1), self.hidden, own.embed(values))  # [B, n, dim]
        start = self.start.expand(tokens.shape[0], 1, -1)
        modality = self.modalities[TABLE if isinstance(own, TableTokens) else IMAGE]
        encoded = self.encoder(torch.cat([start, tokens], dim=1) + self.positions[part] + modality)  # [B, 1 + n, dim]
        return own.decode(encoded[:, 1:]), self.tampered(encoded[:, 0]).squeeze(-1).float()

    def loss(self, part: int, values: Tensor) -> Tensor:
        """L (1) of normal samples, with masks and tampered copies from torch's global generator."""
        own, count = self.parts[part], len(values)
        samples = torch.cat([values, own.corrupted(values)])
        masks = own.draw_masks(2 * count)
        decoded, logits = self(part, samples, masks)
        shown = masks[:count]
        error = (own.errors(values, decoded[:count]) * shown).sum() / shown.sum().clamp(min=1)
        tampered = torch.arange(2 * count, device=values.device) >= count
        return error + own.TAMPERED * F.binary_cross_entropy_with_logits(logits, tampered.float())

    def evaluate(self, part: int, values: Tensor) -> tuple[Tensor, Tensor]:
        """e (2) [B, n] and p (3) [B] of samples."""
        own, count = self.parts[part], values.shape[0]  # len would make a constant of it in an export
        n = own.masks.shape[1]
        errors, probabilities = 0, 0
        for masks in own.masks.split(max(1, TOKENS_AT_ONCE // n)):
            k = len(masks)
            hidden = masks.expand(count, k, n).flatten(0, 1)  # [B k, n]
            repeated = values.unsqueeze(1).expand(-1, k, *values.shape[1:]).flatten(0, 1)
            decoded, logits = self(part, repeated, hidden)
            found = own.errors(repeated, decoded).sqrt() * hidden
            errors = errors + found.unflatten(0, (-1, k)).sum(dim=1)
            probabilities = probabilities + logits.sigmoid().unflatten(0, (-1, k)).sum(dim=1)
        return errors / own.masks.sum(dim=0), probabilities / len(own.masks)


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Let torch's global generators, from which the loss draws, start from a seed, and be as before afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
