"""The two trained networks: feature adaptor (2) and discriminator (4) or (12), composed (8); see detector.py."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from backbones.float32 import full_float32
from detection.derived import Derived
from errors import UsageError
from simplenet.memory import compared, difference_table


class Adaptor(nn.Module):
    """G (2): linear layers D -> D that bring patch features to the target domain.

    Args:
        dim: feature dimension D.
        n_layers: number of linear layers (`--pre_proj`); 0 is the identity.
        layer_type: above 1 puts LeakyReLU(0.2) between the layers (`--proj_layer_type`).
    """

    def __init__(self, dim: int, n_layers: int = 1, layer_type: int = 0) -> None:
        super().__init__()
        self.layers = nn.Sequential()
        for i in range(n_layers):
            if i > 0 and layer_type > 1:
                self.layers.append(nn.LeakyReLU(0.2))
            self.layers.append(_linear(dim, dim))

    def forward(self, features: Tensor) -> Tensor:
        """q [N, D] of o [N, D]."""
        return self.layers(features)


class Discriminator(nn.Module):
    """D (4): an MLP on adapted features whose output is high for normal patches.

    Args:
        dim: feature dimension D.
        n_layers: number of linear layers (`--dsc_layers`), the last without bias.
        hidden: width of the hidden layers (`--dsc_hidden`); None starts at D and divides by 1.5 at every block.
        compares: whether its first layer also sees how features differ from a memory (12); it is then to be given one.

    Raises:
        UsageError: the shrinking width reaches zero.
    """

    def __init__(self, dim: int, n_layers: int = 2, hidden: int | None = None, compares: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential()
        width, seen = dim, 2 * dim + 1 if compares else dim
        for _ in range(n_layers - 1):
            out = int(width / 1.5) if hidden is None else hidden
            if out < 1:
                raise UsageError(f"dsc_layers {n_layers} shrink a width of {dim} to nothing: set dsc_hidden")
            self.body.append(nn.Sequential(_linear(seen, out), nn.BatchNorm1d(out), nn.LeakyReLU(0.2, inplace=True)))
            width = seen = out
        self.tail = _linear(seen, 1, bias=False)

    @property
    def first(self) -> nn.Linear:
        """The linear layer that meets the adapted features."""
        return self.body[0][0] if len(self.body) else self.tail

    def after_first(self, hidden: Tensor) -> Tensor:
        """Scores [N, 1] from the first layer's output h [N, H]."""
        if len(self.body) == 0:
            return hidden
        _, norm, activation = self.body[0]
        activations = self.body[1:](activation(norm(hidden)))
        if self.training:
            return self.tail(activations)
        with full_float32(hidden.device):  # the few digits of bf16 would tie patches and images
            return self.tail(activations.float())

    def forward(
        self,
        adapted: Tensor,
        memory: Tensor | None = None,
        nearest: Tensor | None = None,
        table: Tensor | None = None,
    ) -> Tensor:
        """D(q) [N, 1] of q [N, D]; where it compares, with the adapted patches m [K, D] of a memory, of which k [N].

        Who knows the table W_b m_k already may give it, see difference_table.
        """
        if memory is None:
            return self.after_first(self.first(adapted))
        if table is None:
            table = difference_table(self.first, memory)
        return self.after_first(compared(self.first, adapted, memory, table, nearest))


class Member(nn.Module):
    """A feature adaptor and the discriminator that is trained with it."""

    def __init__(self, adaptor: Adaptor, discriminator: Discriminator) -> None:
        super().__init__()
        self.adaptor = adaptor
        self.discriminator = discriminator
        self._known: Derived[Any] = Derived()

    def forward(self, features: Tensor, memory: Tensor | None = None, nearest: Tensor | None = None) -> Tensor:
        """D(G(o)) [N, 1] of o [N, D]; where it compares, of u, with patches u_k [K, D], of which k [N]."""
        if memory is not None:
            weights = memory, *self.adaptor.parameters(), self.discriminator.first.weight
            adapted, table = self._known.of(weights, lambda: self._met(memory))
            return self.discriminator(self.adaptor(features), adapted, nearest, table)
        composed = self._known.of(tuple(self.parameters()), lambda: compose(self.adaptor, self.discriminator))
        if composed is None:
            return self.discriminator(self.adaptor(features))
        return self.discriminator.after_first(F.linear(features, *composed))

    def _met(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        """m [K, D] and W_b m_k [K, H] of patches u_k."""
        adapted = self.adaptor(memory)
        return adapted, difference_table(self.discriminator.first, adapted)


def compose(adaptor: nn.Module, discriminator: nn.Module) -> tuple[Tensor, Tensor | None] | None:
    """W1 W and W1 b + b1 (8): the weight [H, D] and bias [H] that make h of o.

    Of several layers in the adaptor all are multiplied. None where it has an activation, or the networks are others.
    """
    if not (isinstance(adaptor, Adaptor) and isinstance(discriminator, Discriminator)):
        return None
    weight, bias = discriminator.first.weight, discriminator.first.bias  # W1 [H, D], b1 [H]
    for layer in reversed(adaptor.layers):
        if not isinstance(layer, nn.Linear):
            return None
        shift = weight @ layer.bias  # W1 b: [H]
        bias = shift if bias is None else bias + shift
        weight = weight @ layer.weight  # W1 W: [H, D]
    return weight, bias


def _linear(in_dim: int, out_dim: int, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(in_dim, out_dim, bias=bias)
    nn.init.xavier_normal_(layer.weight)
    return layer
