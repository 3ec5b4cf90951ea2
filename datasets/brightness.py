"""How bright an image is, as the network gets it."""

import cv2
import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def brightness_of(read: Tensor) -> float | None:
    """The mean grey value, 0 to 255, of an image's RGB pixels, uint8 [3, H, W]; None of a table's row.

    Of [4, H, W] those count whose fourth channel, the mask of interest, is not 0.

    A mean rather than a median, which is the background's where that covers half of the image and does not follow the
    light where it is black; and which is a whole number, where the light of a class may differ by less.
    """
    if read.dtype != torch.uint8:
        return None
    channels = read.permute(1, 2, 0).numpy()
    colours = cv2.mean(channels, channels[..., 3].copy() if channels.shape[2] == 4 else None)
    return sum(share * value for share, value in zip(LUMA, colours, strict=False))
