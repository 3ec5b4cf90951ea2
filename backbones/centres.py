"""Where the cells of a network's maps look: each one's middle in the image, by strides and paddings on the way."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Size = tuple[int, int]
_aten = torch.ops.aten
_RELU = (_aten.relu, _aten.relu_)


class Centres(NamedTuple):
    """Cell i of an axis looks at pixel offset + i * stride, in the middle; pixel 0 is the middle of the first one."""

    offset: float
    stride: float

    def within(self, offset: float, stride: float) -> "Centres":
        """Those of cells that look at these cells as (offset, stride) says."""
        return Centres(self.offset + offset * self.stride, self.stride * stride)


def middle(cells: int, length: int) -> Centres:
    """Those of cells that share an axis of so many pixels evenly."""
    return Centres((length / cells - 1) / 2, length / cells)


class Tracer(TorchDispatchMode):
    """Follows the axes of an image through whatever is computed of it while this is active.

    A convolution or a pool of size k, stride s and padding p takes cell i from the middle of its window,
    i s + (k - 1) / 2 - p; where branches meet, their mean is taken. What is computed otherwise keeps the centres of
    axes whose length it keeps; an axis that is reshaped is lost.
    """

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[int, tuple[Tensor, dict[int, Centres]]] = {}  # by id; tensors of meta take no memory
        self.maps: dict[Size, tuple[Centres, Centres]] = {}
        self.rectified: set[int] = set()  # ids of tensors that a ReLU has made

    def start(self, images: Tensor) -> None:
        """Follow images [B, 3, H, W]."""
        self._keep(images, {2: Centres(0.0, 1.0), 3: Centres(0.0, 1.0)})

    def of(self, tensor: Tensor) -> dict[int, Centres]:
        """The centres that are known of a tensor's axes."""
        return self.known.get(id(tensor), (tensor, {}))[1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        if any(self.of(one) for one in inputs):
            rule = _RULES.get(func.overloadpacket)
            for output in tree_leaves(result):
                if isinstance(output, Tensor):
                    own = self.of(args[0]) if rule else {}
                    self._keep(output, rule(own, output, *args) if rule else self._kept(inputs, output))
                    change = self.rectified.add if func.overloadpacket in _RELU else self.rectified.discard
                    change(id(output))  # computed in place, it keeps its id
        return result

    def _keep(self, tensor: Tensor, axes: dict[int, Centres]) -> None:
        self.known[id(tensor)] = tensor, axes
        if tensor.ndim == 4 and set(axes) == {2, 3}:
            self.maps[tensor.shape[2], tensor.shape[3]] = axes[2], axes[3]

    def _kept(self, inputs: list[Tensor], output: Tensor) -> dict[int, Centres]:
        """The mean of what is known of the axes that an output has in common with inputs."""
        axes: dict[int, Centres] = {}
        for axis in range(output.ndim):
            found = [
                self.of(one)[axis]
                for one in inputs
                if one.ndim == output.ndim and axis in self.of(one) and one.shape[axis] == output.shape[axis]
            ]
            if found:
                axes[axis] = Centres(*(sum(values) / len(found) for values in zip(*found, strict=True)))
        return axes


Axes = dict[int, Centres]


def _pair(value: Any) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values


def _windows(own: Axes, kernel: Any, stride: Any, padding: Any, dilation: Any) -> Axes:
    kernel, padding, dilation = _pair(kernel), _pair(padding), _pair(dilation)
    stride = _pair(stride) if stride else kernel
    return {
        axis: own[axis].within((kernel[i] - 1) * dilation[i] / 2 - padding[i], stride[i])
        for i, axis in enumerate((2, 3))
        if axis in own
    }


def _convolution(
    own: Axes,
    _: Tensor,
    images: Tensor,
    weight: Tensor,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    *__: Any,
) -> Axes:
    return {} if transposed or images.ndim != 4 else _windows(own, weight.shape[2:], stride, padding, dilation)


def _max_pool(
    own: Axes, _: Tensor, __: Tensor, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, *___: Any
) -> Axes:
    return _windows(own, kernel, stride, padding, dilation)


def _avg_pool(own: Axes, _: Tensor, __: Tensor, kernel: Any, stride: Any = (), padding: Any = 0, *___: Any) -> Axes:
    return _windows(own, kernel, stride, padding, 1)


def _pad(own: Axes, _: Tensor, images: Tensor, padding: Any, *__: Any) -> Axes:
    before = {images.ndim - 1 - i: padding[2 * i] for i in range(len(padding) // 2)}
    return {axis: centres.within(-before.get(axis, 0), 1) for axis, centres in own.items()}


def _resize(own: Axes, output: Tensor, images: Tensor, *_: Any) -> Axes:
    factors = {axis: images.shape[axis] / output.shape[axis] for axis in own}
    return {axis: centres.within((factors[axis] - 1) / 2, factors[axis]) for axis, centres in own.items()}


def _permute(own: Axes, _: Tensor, images: Tensor, order: Any) -> Axes:
    return {i: own[axis % images.ndim] for i, axis in enumerate(order) if axis % images.ndim in own}


def _transpose(own: Axes, _: Tensor, images: Tensor, first: int, second: int) -> Axes:
    first, second = first % images.ndim, second % images.ndim
    return {{first: second, second: first}.get(axis, axis): centres for axis, centres in own.items()}


def _view(own: Axes, output: Tensor, images: Tensor, *_: Any) -> Axes:
    """An axis stays one where as much lies behind it as before."""
    return {
        new: centres
        for axis, centres in own.items()
        for new in range(output.ndim)
        if output.shape[new] == images.shape[axis]
        and output.shape[new + 1 :].numel() == images.shape[axis + 1 :].numel()
    }


def _slice(own: Axes, _: Tensor, images: Tensor, dim: int = 0, start: Any = None, *end_and_step: int) -> Axes:
    first = start or 0
    first = max(first + images.shape[dim], 0) if first < 0 else first
    step = end_and_step[1] if len(end_and_step) > 1 else 1
    return {a: centres.within(first, step) if a == dim % images.ndim else centres for a, centres in own.items()}


_RULES = {
    _aten.convolution: _convolution,
    _aten.max_pool2d_with_indices: _max_pool,
    _aten.avg_pool2d: _avg_pool,
    _aten.constant_pad_nd: _pad,
    _aten.reflection_pad2d: _pad,
    _aten.replication_pad2d: _pad,
    _aten.upsample_nearest2d: _resize,
    _aten.upsample_bilinear2d: _resize,
    _aten.upsample_bicubic2d: _resize,
    _aten._adaptive_avg_pool2d: _resize,
    _aten.permute: _permute,
    _aten.transpose: _transpose,
    _aten.view: _view,
    _aten._unsafe_view: _view,
    _aten.reshape: _view,
    _aten.unsqueeze: _view,
    _aten.slice: _slice,
}
