"""The two trained networks: feature adaptor G (SimpleNet, Eq. 5) and discriminator D (section 3.4)."""

from torch import Tensor, nn

from errors import UsageError


class Adaptor(nn.Module):
    """Projects patch features to the target domain: q = G(o), linear layers D -> D (Eq. 5).

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
        """[N, D] -> [N, D]."""
        return self.layers(features)


class Discriminator(nn.Module):
    """Scores normality of adapted features: an MLP whose output is high for normal patches.

    Args:
        dim: feature dimension D.
        n_layers: number of linear layers (`--dsc_layers`), the last without bias.
        hidden: width of the hidden layers (`--dsc_hidden`); None starts at D and divides by 1.5 at every block.

    Raises:
        UsageError: the shrinking width reaches zero.
    """

    def __init__(self, dim: int, n_layers: int = 2, hidden: int | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential()
        width = dim
        for _ in range(n_layers - 1):
            out = int(width / 1.5) if hidden is None else hidden
            if out < 1:
                raise UsageError(f"dsc_layers {n_layers} shrink a width of {dim} to nothing: set dsc_hidden")
            self.body.append(nn.Sequential(_linear(width, out), nn.BatchNorm1d(out), nn.LeakyReLU(0.2)))
            width = out
        self.tail = _linear(width, 1, bias=False)

    def forward(self, adapted: Tensor) -> Tensor:
        """[N, D] -> [N, 1]."""
        return self.tail(self.body(adapted))


def _linear(in_dim: int, out_dim: int, bias: bool = True) -> nn.Linear:
    layer = nn.Linear(in_dim, out_dim, bias=bias)
    nn.init.xavier_normal_(layer.weight)
    return layer
