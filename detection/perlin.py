"""Masks of made anomalies: Perlin noise above a threshold (Zavrtanik et al.: DRAEM, ICCV 2021).

With gradients at angles 2 pi u at the points of a lattice of r x c cells, and the place of pixel (i, j) in it

    y = i r / H, x = j c / W, fractions f_y, f_x                                                     (1)
    n_ab = cos_ab (f_y - a) + sin_ab (f_x - b)     at the corners a, b of its cell                   (2)
    F(t) = 6 t^5 - 15 t^4 + 10 t^3,  mix_w(p, q) = p + w (q - p)                                     (3)
    noise = sqrt(2) mix_F(f_x)( mix_F(f_y)(n_00, n_10), mix_F(f_y)(n_01, n_11) )                     (4)
    mask = noise, rotated about its centre, > 0.5                                                    (5)
"""

import numpy as np
from numpy.typing import NDArray

THRESHOLD = 0.5
EXPONENTS = 6  # cells along an axis: 1, 2, ..., 32
DEGREES = 90.0  # of rotation, to either side


def perlin_noise(uniform: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.floating]:
    """Noise (4) of height and width `size`, by u of the lattice points [r + 1, c + 1] in [0, 1); about -1 to 1.

    Sides need not be multiples of r and c. Where a side is that many cells, all of its noise is 0.
    """
    angles = 2 * np.pi * uniform
    along_rows, along_columns = np.cos(angles), np.sin(angles)
    places = [np.arange(side) * (points - 1) / side for side, points in zip(size, uniform.shape, strict=True)]
    rows, columns = (np.floor(own).astype(int) for own in places)
    down, right = places[0] - rows, places[1] - columns

    def corner(a: int, b: int) -> NDArray[np.floating]:
        at = np.ix_(rows + a, columns + b)
        return along_rows[at] * (down - a)[:, None] + along_columns[at] * (right - b)

    down_weight, right_weight = _fade(down)[:, None], _fade(right)
    left = corner(0, 0) + down_weight * (corner(1, 0) - corner(0, 0))
    other = corner(0, 1) + down_weight * (corner(1, 1) - corner(0, 1))
    return np.sqrt(2) * (left + right_weight * (other - left))


def perlin_mask(size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.bool_]:
    """A mask (5) of height and width `size`, of noise of random scales; empty at times.

    The scale of rows is drawn, then that of columns, u and the angle.
    """
    import cv2  # late: only training needs it

    scales = [2 ** int(rng.integers(_exponents(side))) for side in size]
    noise = perlin_noise(rng.random([scale + 1 for scale in scales]), size)
    height, width = size
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), rng.uniform(-DEGREES, DEGREES), 1.0)
    return cv2.warpAffine(noise, turn, (width, height), flags=cv2.INTER_LINEAR) > THRESHOLD


def _exponents(side: int) -> int:
    """How many of the exponents have cells of two pixels or more along a side."""
    return max(1, min(EXPONENTS, int(np.log2(side))))


def _fade(t: NDArray[np.floating]) -> NDArray[np.floating]:
    return t**3 * (t * (6 * t - 15) + 10)
