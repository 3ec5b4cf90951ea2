"""Images brought to where a template is: translation by phase correlation, then ECC (OpenCV).

    R = F_T conj(F_X) / |F_T conj(F_X)|, the peak of ifft(R) is the shift               Kuglin and Hines 1975      (1)
    w = argmax over warps W(.; w) of corr(T, X(W(.; w)))                        ECC, Evangelidis and Psarakis 2008 (2)

Both images are blurred before. Warps have few parameters first and then more; each begins with the best before it, and
is taken if it correlates better and leaves at least half of the image in view: what has no clear place stays as it is.
"""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]  # [H, W]
Warp = NDArray[np.float32]  # [2, 3]: where pixels (x, y, 1) of the template lie in the image

MOTIONS = {
    "translation": cv2.MOTION_TRANSLATION,
    "euclidean": cv2.MOTION_EUCLIDEAN,
    "affine": cv2.MOTION_AFFINE,
}
BLUR = 1.0  # pixels
SMOOTHING = 5  # pixels: side of ECC's own Gaussian
CRITERIA = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 100, 1e-6)
BORDER = 2  # pixels within the view that do not count: interpolation reaches out of it
LEAST_SEEN = 0.5


class Warped(NamedTuple):
    """An image where the template is, and which of its pixels were in view, bool [H, W]."""

    image: Image
    seen: NDArray[np.bool_]


def register(image: Image, template: Image, motion: str) -> Warp:
    """The warp that brings an image to where a template is, with at most as many parameters as a motion has."""
    image, template = (cv2.GaussianBlur(own, (0, 0), BLUR) for own in (image, template))
    best, highest = still(), _correlation(image, template, still())
    for step in ("phase", *MOTIONS):
        warp = shift(image, template) if step == "phase" else refined(image, template, best, MOTIONS[step])
        if warp is not None and (found := _correlation(image, template, warp)) > highest:
            best, highest = warp, found
        if step == motion:
            break
    return best


def still() -> Warp:
    """The warp that moves nothing."""
    return np.eye(2, 3, dtype=np.float32)


def shift(image: Image, template: Image) -> Warp:
    """The translation (1)."""
    window = cv2.createHanningWindow(image.shape[::-1], cv2.CV_32F)
    (x, y), _ = cv2.phaseCorrelate(template, image, window)
    return np.float32([[1, 0, x], [0, 1, y]])


def refined(image: Image, template: Image, warp: Warp, motion: int) -> Warp | None:
    """The warp (2) of one of OpenCV's motions, from one that is near; None where it does not converge."""
    try:
        return cv2.findTransformECC(template, image, warp.copy(), motion, CRITERIA, None, SMOOTHING)[1]
    except cv2.error:
        return None


def warped(image: Image, warp: Warp) -> Warped:
    """An image by a warp; its edge goes on where it was not in view."""
    size, inverse, ones = image.shape[::-1], cv2.WARP_INVERSE_MAP, np.ones(image.shape, np.uint8)
    moved = cv2.warpAffine(image, warp, size, flags=cv2.INTER_LINEAR | inverse, borderMode=cv2.BORDER_REPLICATE)
    return Warped(moved, cv2.warpAffine(ones, warp, size, flags=cv2.INTER_NEAREST | inverse) > 0)


def counting(seen: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels in view, without BORDER of them where the view ends within the picture."""
    return cv2.erode(np.uint8(seen), np.ones((2 * BORDER + 1,) * 2, np.uint8)) > 0


def moved_back(values: Image, warp: Warp) -> Image:
    """Values of a template's pixels at those of the image, 0 where the template does not reach."""
    return cv2.warpAffine(values, warp, values.shape[::-1], flags=cv2.INTER_LINEAR)


def _correlation(image: Image, template: Image, warp: Warp) -> float:
    """corr (2) of the pixels in view; of too few of them, or of what has no contrast, -1."""
    if not np.isfinite(warp).all() or abs(np.linalg.det(warp[:, :2])) < LEAST_SEEN:
        return -1.0
    moved, seen = warped(image, warp)
    if seen.mean() < LEAST_SEEN:
        return -1.0
    one, two = (own[seen] - own[seen].mean(dtype=float) for own in (moved, template))
    size = np.sqrt(one.dot(one) * two.dot(two))
    return float(one.dot(two) / size) if size > 0 else -1.0
