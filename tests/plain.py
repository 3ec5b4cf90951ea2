"""Textbook forms of what the detectors take from libraries, to compare with."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def adam(
    weight: Tensor,
    gradients: Sequence[Tensor],
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    decoupled_decay: float = 0.0,
    amsgrad: bool = False,
) -> NDArray[np.float64]:
    """The weight after a step of Adam down each gradient (Kingma and Ba, 2015).

    With decoupled weight decay (Loshchilov and Hutter, 2019), and the largest second moment so far in place of the
    last (Reddi, Kale and Kumar, 2018).
    """
    values = weight.detach().double().numpy().copy()
    first, second, largest = (np.zeros_like(values) for _ in range(3))
    for step, gradient in enumerate(gradients, start=1):
        slope = gradient.double().numpy()
        values -= lr * decoupled_decay * values
        first = betas[0] * first + (1 - betas[0]) * slope
        second = betas[1] * second + (1 - betas[1]) * slope**2
        largest = np.maximum(largest, second)
        spread = np.sqrt((largest if amsgrad else second) / (1 - betas[1] ** step)) + 1e-8
        values -= lr * first / (1 - betas[0] ** step) / spread
    return values
