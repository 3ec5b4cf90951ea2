"""Pictures for people: an image, its mask, its anomaly map and both on each other, side by side."""

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from detection import is_anomalous

WORST = 5  # misses, and as many false alarms
OVERLAY = 0.45  # the map's share
MASK_COLOUR = (0, 255, 0)  # of the mask's outline on the overlay
CAPTION, FONT = 22, 13  # pixels
SHOWN = 768  # pixels of a page's width
NO_MAP = "no map"
ROWS = 256  # of a map that are coloured at once: of a large one all would take much memory


def panel(
    image: NDArray[np.uint8],
    mask: NDArray[np.bool_] | None,
    anomaly_map: NDArray[np.floating] | None,
    map_range: tuple[float, float] | None,
    regions: NDArray[np.bool_] | None = None,
) -> NDArray[np.uint8]:
    """Image, mask (where the dataset has masks), map and overlay in a row.

    Args:
        image: RGB [H, W, 3].
        mask: [H, W], or None to leave it out.
        anomaly_map: [H, W]; where it is NaN, nothing is laid over the image. None says that there is no map.
        map_range: the pixel scores that are drawn in the coldest and the hottest colour.
        regions: [H, W], outlined on the overlay in the place of a mask that there is not.

    Returns:
        RGB [H, 4 W, 3], or [H, 3 W, 3] without a mask.
    """
    height, width = image.shape[:2]
    drawn = np.empty((height, width * (3 if mask is None else 4), 3), np.uint8)
    left, *middle, colours, overlay = np.split(drawn, drawn.shape[1] // width, axis=1)  # which share its memory
    left[:] = image
    for filled in middle:
        filled[:] = mask[..., None] * np.uint8(255)
    if anomaly_map is None:
        colours[:], overlay[:] = _blank(image), image
    else:
        for top in range(0, height, ROWS):
            rows = slice(top, top + ROWS)
            colours[rows], overlay[rows] = _heat(image[rows], anomaly_map[rows], *map_range)
    outlined = regions if mask is None else mask
    if outlined is not None:
        overlay[:] = _outlined(overlay, outlined)
    return drawn


def _outlined(picture: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A picture with the outline of a mask on it."""
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.array(picture), outlines, -1, MASK_COLOUR, 1)


def _heat(
    image: NDArray[np.uint8], anomaly_map: NDArray[np.floating], low: float, high: float
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A map in colours, and those over the image."""
    known = np.isfinite(anomaly_map)
    colours = coloured(anomaly_map, low, high)
    overlay = cv2.addWeighted(colours, OVERLAY, image, 1 - OVERLAY, 0)
    return np.where(known[..., None], colours, 0), np.where(known[..., None], overlay, image)


def coloured(anomaly_map: NDArray[np.floating], low: float, high: float) -> NDArray[np.uint8]:
    """A map [H, W] in colours, RGB [H, W, 3]; the coldest is of scores up to `low` and where it is not finite, the
    hottest from `high`.
    """
    heat = np.clip((np.where(np.isfinite(anomaly_map), anomaly_map, low) - low) / max(high - low, 1e-12), 0, 1)
    return cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]


def _blank(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What stands in the place of a map where there is none."""
    height, width = image.shape[:2]
    tile = Image.new("RGB", (width, height), "gray")
    ImageDraw.Draw(tile).text((width / 2, height / 2), NO_MAP, "white", ImageFont.load_default(FONT), anchor="mm")
    return np.asarray(tile)


def captioned(drawn: NDArray[np.uint8], score: float, threshold: float) -> NDArray[np.uint8]:
    """A picture [H, W, 3] under a line with its score, the threshold and what follows from them."""
    decision = "anomalous" if is_anomalous(score, threshold) else "normal"
    strip = Image.new("RGB", (drawn.shape[1], CAPTION), "white")
    text = f"score {score:.3f}, threshold {threshold:.3f}: {decision}"
    ImageDraw.Draw(strip).text((6, 3), text, fill="black", font=ImageFont.load_default(FONT))
    return np.concatenate([np.asarray(strip), drawn])


def encoded(drawn: NDArray[np.uint8], suffix: str) -> bytes:
    """An RGB picture, or a grey one [H, W], as the bytes of a file that ends in .png or .jpg."""
    options = [cv2.IMWRITE_JPEG_QUALITY, 88] if suffix == ".jpg" else [cv2.IMWRITE_PNG_COMPRESSION, 3]
    return cv2.imencode(suffix, drawn if drawn.ndim == 2 else drawn[..., ::-1], options)[1].tobytes()


def smaller(content: bytes) -> bytes:
    """A picture of a file, as wide as a page shows it at most; the same where it is no wider, or no picture."""
    drawn = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    if drawn is None or drawn.shape[1] <= SHOWN:
        return content
    height = round(drawn.shape[0] * SHOWN / drawn.shape[1])
    drawn = cv2.resize(drawn, (SHOWN, height), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()


def worst(anomalous: ArrayLike, scores: ArrayLike, count: int = WORST) -> tuple[list[int], list[int]]:
    """Where the model errs most: indices of the lowest-scored anomalous and of the highest-scored normal images.

    Args:
        anomalous: labels [N].
        scores: image scores [N].
        count: at most so many of each, the worst first.
    """
    labels, order = np.asarray(anomalous, dtype=bool), np.argsort(scores, kind="stable")
    misses, alarms = order[labels[order]], order[~labels[order]][::-1]
    return misses[:count].tolist(), alarms[:count].tolist()


def picture_name(index: int) -> str:
    """Where the picture of a row of predictions.csv lies below the model's folder."""
    return f"examples/{index:05}.jpg"
