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

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from backbones import LayerInfo
from errors import UsageError

SHRINK = 0.1  # of what a subnet gives
BETA = 0.5  # of the softplus that g is
START = 9.986524  # gamma at which g is 1: 2 ln(e^5 - 1)
BITS = 1 / math.log(2)  # in a natural logarithm's unit

Subnet = tuple[nn.Module, nn.Conv2d]  # all but the last convolution, and that one


class Conv(nn.Conv2d):
    """A convolution of maps that stay as large as they are.

    Args:
        inputs, outputs: channels.
        kernel: its side, odd.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, outputs, H, W] of [B, inputs, H, W]."""
        return convolved(x, self.weight, self.bias)


class Step(nn.Module):
    """What a step, (1) to (5), learns; a Flow makes it.

    Args:
        channels: C, 2 or more.
        subnet: makes the subnet of so many input and output channels.
        clamp: alpha.
    """

    def __init__(self, channels: int, subnet: Callable[[int, int], Subnet], clamp: float) -> None:
        super().__init__()
        self.clamp = clamp
        self.register_buffer("order", torch.randperm(channels))
        self.scale = nn.Parameter(torch.full((channels,), START))  # gamma
        self.offset = nn.Parameter(torch.zeros(channels))
        self.hidden, self.out = subnet(channels - channels // 2, 2 * (channels // 2))


class Affine(NamedTuple):
    """What a step does beside its subnet.

    Attributes:
        gain, offset: g and o of the kept half, [n1].
        log_gain: log g of the changed half, [n2].
        weight, bias: of the subnet's last convolution, which gives 2 a (1) of s, and t with the changed half's g and o.
        order, back: of channels, that of (4), and where each of v is in it, [C].
    """

    gain: Tensor
    offset: Tensor
    log_gain: Tensor
    weight: Tensor
    bias: Tensor
    order: Tensor
    back: Tensor


class Flow(nn.Module):
    """Steps one behind the other.

    Args:
        steps: of maps with the same number of channels, and with the same alpha.
    """

    def __init__(self, steps: Iterable[Step]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(steps)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z, float32 [B, C, H, W], and log|det dz/dx|, float32 [B], of maps x, float32 [B, C, H, W]."""
        couple = _Coupling.apply if torch.is_grad_enabled() else _couple
        kept, changed = _halves(x)
        affines, of_gains = self._affines()
        logdets = []
        for step, own in zip(self.steps, affines, strict=True):
            a = _subnet(step, own, kept)
            kept, changed, logdet, *_ = couple(
                kept, changed, a, own.gain, own.offset, own.log_gain, own.order, own.back, step.clamp
            )
            logdets.append(logdet)
        return torch.cat([kept, changed], dim=1), torch.stack(logdets).sum(dim=0) + x[0, 0].numel() * of_gains

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """x of z, and log|det dx/dz|; shapes as of forward."""
        x = z
        affines, of_gains = self._affines()
        logdet = z[0, 0].numel() * of_gains
        for step, own in reversed(list(zip(self.steps, affines, strict=True))):
            kept, changed = _halves(x.index_select(1, own.back))
            kept = (kept - _column(own.offset)) / _column(own.gain)
            inner, shift = _subnet(step, own, kept).to(kept.dtype).chunk(2, dim=1)
            log_factor = _column(own.log_gain) + step.clamp * (inner / 2).tanh()
            logdet = logdet + log_factor.sum(dim=(1, 2, 3))
            x = torch.cat([kept, (changed - shift) / log_factor.exp()], dim=1)
        return x, -logdet

    def _affines(self) -> tuple[list[Affine], Tensor]:
        """Of every step what it does beside its subnet, and the sum over all of log g of the kept halves.

        It is made of all steps at once: there are few numbers in it, and many operations.
        """
        scale, offset, bias, order = (
            torch.stack(own)
            for own in zip(*((step.scale, step.offset, step.out.bias, step.order) for step in self.steps), strict=True)
        )
        changed = scale.shape[1] // 2
        count = scale.shape[1] - changed
        first, last = (SHRINK * F.softplus(scale, beta=BETA)).split([count, changed], dim=1)  # g (3)
        rows = SHRINK * torch.cat([torch.full_like(last, 2), last], dim=1)
        weights = [row.view(-1, 1, 1, 1) * step.out.weight for row, step in zip(rows, self.steps, strict=True)]
        biases = rows * bias + F.pad(offset[:, count:], (changed, 0))
        parts = first, offset[:, :count], last.log(), weights, biases, order, order.argsort(dim=1)
        return [Affine(*own) for own in zip(*parts, strict=True)], first.log().sum()


def convolved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Maps [B, n, H, W] convolved by weight [m, n, k, k] and bias [m], zeros around: [B, m, H, W]."""
    if weight.shape[2:] != (1, 1) or torch.compiler.is_compiling():
        return F.conv2d(x, weight, bias, padding=weight.shape[2] // 2)
    products = weight.flatten(1).expand(len(x), -1, -1)  # on several threads in a third of a convolution's time
    return torch.baddbmm(bias.view(1, -1, 1), products, x.flatten(2)).unflatten(2, x.shape[2:])


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


def _halves(maps: Tensor) -> tuple[Tensor, Tensor]:
    """What of maps [B, C, H, W] is kept, [B, n1, H, W], and what is changed, [B, n2, H, W]."""
    changed = maps.shape[1] // 2
    return maps.split([maps.shape[1] - changed, changed], dim=1)


def _subnet(step: Step, own: Affine, kept: Tensor) -> Tensor:
    """What a step's subnet with the weights of own gives, [B, 2 n2, H, W], of x[:n1] [B, n1, H, W]."""
    if step.out.kernel_size != (1, 1):  # of few channels faster by a third or more
        kept = kept.contiguous(memory_format=torch.channels_last)
    return convolved(step.hidden(kept), own.weight, own.bias)


def _couple(
    kept: Tensor,
    changed: Tensor,
    a: Tensor,
    gain: Tensor,
    offset: Tensor,
    log_gain: Tensor,
    order: Tensor,
    back: Tensor,
    clamp: float,
) -> tuple[Tensor, ...]:
    """The halves of y (4) of those of x and what _subnet gives, and the sum [B] of log g s over the changed half.

    Besides, for gradients, the sigmoid of a's first half, and g s: [B, n2, H, W] each. Other arguments: see Affine.
    """
    count = len(gain)
    inner, shift = a.to(kept.dtype).contiguous().chunk(2, dim=1)
    bounded = inner.sigmoid()  # tanh x = 2 sigmoid 2 x - 1, in a seventh of tanh's time
    factor = torch.add(_column(log_gain - clamp), bounded, alpha=2 * clamp)
    logdet = factor.sum(dim=(1, 2, 3))
    if torch.compiler.is_compiling():
        factor = factor.exp()
        v = torch.cat([kept * _column(gain) + _column(offset), torch.addcmul(shift, changed, factor)], dim=1)
    else:
        factor = factor.mul_(BITS).exp2_()  # in half of exp's time
        v = kept.new_empty(len(kept), len(order), *kept.shape[2:])
        torch.mul(kept, _column(gain), out=v[:, :count]).add_(_column(offset))
        torch.addcmul(shift, changed, factor, out=v[:, count:])
    return v.index_select(1, order[:count]), v.index_select(1, order[count:]), logdet, bounded, factor


class _Coupling(torch.autograd.Function):
    """_couple with its gradient, in as few passes over the maps as there can be."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        kept, changed, a, gain, _, _, _, back, clamp = inputs
        *outputs, bounded, factor = _couple(*inputs)
        ctx.save_for_backward(kept, changed, gain, back, bounded, factor)
        ctx.slope, ctx.precision, ctx.channels_last = 2 * clamp, a.dtype, not a.is_contiguous()
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        kept, changed, gain, back, bounded, factor = ctx.saved_tensors
        *halves, of_logdet = gradients
        count, places = len(gain), (0, 2, 3)
        of_v = torch.cat(halves, dim=1)
        of_kept = of_v.index_select(1, back[:count])
        of_shift = of_v.index_select(1, back[count:])
        of_changed = of_shift * factor
        of_log = torch.addcmul((ctx.slope * of_logdet).view(-1, 1, 1, 1), of_changed, changed, value=ctx.slope)
        of_a = _joined(torch.ops.aten.sigmoid_backward(of_log, bounded), of_shift, ctx.channels_last)
        of_affine = (of_kept * kept).sum(dim=places), of_kept.sum(dim=places), of_log.sum(dim=places) / ctx.slope
        of_kept *= _column(gain)
        return of_kept, of_changed, of_a.to(ctx.precision), *of_affine, None, None, None


def _joined(first: Tensor, second: Tensor, channels_last: bool) -> Tensor:
    """Both one behind the other; channels are brought to the end of each half alone, in half of the time of all."""
    if not channels_last:
        return torch.cat([first, second], dim=1)
    batch, channels, *cells = first.shape
    found = first.new_empty(batch, *cells, 2 * channels).movedim(-1, 1)
    for own, half in zip(found.chunk(2, dim=1), (first, second), strict=True):
        own.copy_(half)
    return found
