"""A page of examples: of every class a normal image, a logical and a structural anomaly with its outline.

python -m datasets.assembly OUT.jpg
"""

import sys

import cv2
import numpy as np
from numpy.typing import NDArray

from datasets.assembly.pictures import KINDS, LOGICAL, STRUCTURAL, picture

SHOWN = {  # index of the image in its split
    "box": {"test/good": 0, LOGICAL: 2, STRUCTURAL: 3},
    "cable": {"test/good": 0, LOGICAL: 3, STRUCTURAL: 2},
    "rods": {"test/good": 0, LOGICAL: 3, STRUCTURAL: 3},
}


def outlined(class_name: str, split: str, index: int) -> NDArray[np.uint8]:
    """A picture with white lines around its defects: uint8 [SIZE, SIZE, 3]."""
    drawn = picture(class_name, 0, split, index)
    image = drawn.image.copy()
    for _, mask in drawn.defects:
        around = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8))
        lines, _ = cv2.findContours(around, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(image, lines, -1, (255, 255, 255), 1)
    return image


if __name__ == "__main__":
    rows = [np.hstack([outlined(name, *place) for place in SHOWN[name].items()]) for name in KINDS]
    cv2.imwrite(sys.argv[1], np.vstack(rows)[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 85])
