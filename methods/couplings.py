"""Normalising flows of maps: affine couplings that keep rows and columns, and whose log-determinants are known.

What FastFlow and MSFlow share. A flow is a chain of steps. One step, of a map x [C, H, W] whose first n1 = C - C // 2
channels are kept and whose other n2 = C // 2 are changed:

    a = 0.1 subnet(x[:n1])                              2 n2 channels                                        (1)
    log s = alpha tanh(a[:n2]),  t = a[n2:]                                                                  (2)
    v = g [x[:n1], s x[n1:] + t] + o                    g = 0.2 ln(1 + exp(gamma / 2)), o: of every channel  (3)
    y_i = v_order(i)                                    channels in an order that is drawn once              (4)
    log|det dy/dx| = sum over c, h, w of log s + H W sum over c of log g                                     (5)
    -log p(x) = 1/2 |z|^2 - sum over steps of (5)       z: what the last step gives; without a constant      (6)

Few channels make cheap convolutions, beside which every pass over memory counts. So 0.1, and g and o of the changed
half, are put into the weights of the subnet's last convolution; the halves stay tensors of their own from step to step;
and (2) to (5) have a gradient that is written by hand. Subnets may compute in bfloat16: whatever a they give, (2) to
(6) are exact of it, in float32.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones import LayerInfo
from errors import UsageError

SHRINK = 0.1  # of what a subnet gives
BETA = 0.5  # of the softplus that g is
START = 9.986524  # gamma at which g is 1: 2 ln(e^5 - 1)

Subnet = tuple[nn.Module, nn.Conv2d]  # all but the last convolution, and that one


class Step(nn.Module):
    """A step, (1) to (5).

    Args:
        channels: C, 2 or more.
        subnet: makes the subnet of so many input and output channels.
        clamp: alpha.
    """

    def __init__(self, channels: int, subnet: Callable[[int, int], Subnet], clamp: float) -> None:
        super().__init__()
        self.clamp = clamp
        self.changed = channels // 2
        self.kept = channels - self.changed
        self.register_buffer("order", torch.randperm(channels))
        self.scale = nn.Parameter(torch.full((channels,), START))  # gamma
        self.offset = nn.Parameter(torch.zeros(channels))
        self.hidden, self.out = subnet(self.kept, 2 * self.changed)

    @property
    def gain(self) -> Tensor:
        """g (3), [C]."""
        return SHRINK * F.softplus(self.scale, beta=BETA)

    def forward(self, kept: Tensor, changed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The halves of y (4) and its log-determinant (5).

        Args:
            kept: x[:n1], float32 [B, n1, H, W].
            changed: x[n1:], float32 [B, n2, H, W].

        Returns:
            float32 [B, n1, H, W], [B, n2, H, W] and [B].
        """
        gain = self.gain
        inner = kept, changed, self._subnet(kept, gain), gain, self.offset, self.order
        if torch.is_grad_enabled():
            return _Coupling.apply(*inner, self.clamp)
        return _couple(*inner, self.clamp)[:3]

    def inverse(self, kept: Tensor, changed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The halves of x from those of y, and the log-determinant of that; shapes as of forward."""
        gain = self.gain
        v = torch.cat([kept, changed], dim=1).index_select(1, self.order.argsort())
        kept, changed = v.split([self.kept, self.changed], dim=1)
        first, last = _column(gain).split([self.kept, self.changed])
        kept = (kept - _column(self.offset[: self.kept])) / first
        inner, shift = self._subnet(kept, gain).to(kept.dtype).chunk(2, dim=1)
        log_factor = last.log() + self.clamp * (inner / 2).tanh()
        logdet = log_factor.sum(dim=(1, 2, 3)) + kept[0, 0].numel() * first.log().sum()
        return kept, (changed - shift) / log_factor.exp(), -logdet

    def _subnet(self, kept: Tensor, gain: Tensor) -> Tensor:
        """2 a (1) of s and a of t, with g and o of the changed half in t: [B, 2 n2, H, W]."""
        rows = SHRINK * torch.cat([torch.full_like(gain[self.kept :], 2), gain[self.kept :]])
        bias = rows * self.out.bias + F.pad(self.offset[self.kept :], (self.changed, 0))
        if self.out.kernel_size != (1, 1):
            kept = kept.contiguous(memory_format=torch.channels_last)
        return F.conv2d(self.hidden(kept), rows.view(-1, 1, 1, 1) * self.out.weight, bias, padding=self.out.padding)


class Flow(nn.Module):
    """Steps one behind the other.

    Args:
        steps: of maps with the same number of channels.
    """

    def __init__(self, steps: Iterable[Step]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z, float32 [B, C, H, W], and log|det dz/dx|, float32 [B], of maps x, float32 [B, C, H, W]."""
        return self._through(x, self.steps)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """x of z, and log|det dx/dz|; shapes as of forward."""
        return self._through(z, [step.inverse for step in reversed(self.steps)])

    def _through(
        self, x: Tensor, steps: Iterable[Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]]
    ) -> tuple[Tensor, Tensor]:
        kept, changed = x.split([x.shape[1] - x.shape[1] // 2, x.shape[1] // 2], dim=1)
        logdets = []
        for step in steps:
            kept, changed, logdet = step(kept, changed)
            logdets.append(logdet)
        return torch.cat([kept, changed], dim=1), torch.stack(logdets).sum(dim=0)


def negative_log_likelihood(z: Tensor, logdet: Tensor) -> Tensor:
    """-log p (6) of maps, the mean over the images: a scalar of z [B, C, H, W] and log-determinants [B]."""
    return (z.square().sum(dim=(1, 2, 3)) / 2 - logdet).mean()


def log_density(z: Tensor) -> Tensor:
    """-1/2 of the mean over the channels of z^2 [B, C, H, W], by which places are told from each other: [B, H, W]."""
    return -z.square().mean(dim=1) / 2


def require_channels(infos: Sequence[LayerInfo], multiple: int = 1) -> None:
    """See that layers have channels to keep and to change, so many or a multiple of that.

    Raises:
        UsageError: one has not.
    """
    for info in infos:
        if info.channels < 2 or info.channels % multiple:
            wanted = "2 or more" if multiple == 1 else f"a multiple of {multiple}"
            raise UsageError(f"layer {info.name} has {info.channels} channels, and a flow needs {wanted}: leave it out")


def _column(values: Tensor) -> Tensor:
    """Values [n] of channels, for maps [B, n, H, W]."""
    return values.view(-1, 1, 1)


def _couple(
    kept: Tensor, changed: Tensor, a: Tensor, gain: Tensor, offset: Tensor, order: Tensor, clamp: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(2) to (5) of what _subnet gives; and for gradients the sigmoid of its first half, and g s: [B, n2, H, W]."""
    count = kept.shape[1]
    inner, shift = a.to(kept.dtype).contiguous().chunk(2, dim=1)
    bounded = inner.sigmoid()  # tanh x = 2 sigmoid 2 x - 1, in a seventh of tanh's time
    factor = torch.add(_column(gain[count:].log() - clamp), bounded, alpha=2 * clamp)
    logdet = factor.sum(dim=(1, 2, 3)) + kept[0, 0].numel() * gain[:count].log().sum()
    factor = factor.exp_()
    first_gain, first_offset = _column(gain[:count]), _column(offset[:count])
    if torch.compiler.is_compiling():
        v = torch.cat([kept * first_gain + first_offset, torch.addcmul(shift, changed, factor)], dim=1)
    else:
        v = kept.new_empty(len(kept), len(gain), *kept.shape[2:])
        torch.mul(kept, first_gain, out=v[:, :count]).add_(first_offset)
        torch.addcmul(shift, changed, factor, out=v[:, count:])
    return v.index_select(1, order[:count]), v.index_select(1, order[count:]), logdet, bounded, factor


class _Coupling(torch.autograd.Function):
    """_couple with its gradient, in as few passes over the maps as there can be."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        kept, changed, a, gain, _, order, clamp = inputs
        *outputs, bounded, factor = _couple(*inputs)
        ctx.save_for_backward(kept, changed, bounded, factor, gain, order)
        ctx.clamp, ctx.precision = clamp, a.dtype
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        kept, changed, bounded, factor, gain, order = ctx.saved_tensors
        *halves, of_logdet = gradients
        batch, count, more, *grid = *kept.shape[:2], changed.shape[1], *kept.shape[2:]
        together = kept.new_empty(batch, count + 2 * more, *grid)  # of the kept half, of a's s, and of a's t
        of_kept, of_inner, of_shift = together.split([count, more, more], dim=1)
        for half, places in zip(halves, (order + more * (order >= count)).split([count, more]), strict=True):
            together.index_copy_(1, places, half)
        of_changed = of_shift * factor
        slope = 2 * ctx.clamp
        of_log = torch.addcmul((slope * of_logdet).view(-1, 1, 1, 1), of_changed, changed, value=slope)
        torch.ops.aten.sigmoid_backward.grad_input(of_log, bounded, grad_input=of_inner)
        of_offset = F.pad(of_kept.sum(dim=(0, 2, 3)), (0, more))
        of_gain = torch.cat(
            [
                (of_kept * kept).sum(dim=(0, 2, 3)) + kept[0, 0].numel() * of_logdet.sum() / gain[:count],
                of_log.sum(dim=(0, 2, 3)) / (slope * gain[count:]),
            ]
        )
        of_a = together[:, count:].to(ctx.precision)
        return of_kept * _column(gain[:count]), of_changed, of_a, of_gain, of_offset, None, None
