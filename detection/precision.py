"""What a detector may compute in, and the words for it."""

from contextlib import AbstractContextManager

import torch

from backbones.float32 import full_float32

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def precision_name(dtype: torch.dtype) -> str:
    """The word for a type on the command line."""
    return next(name for name, own in PRECISIONS.items() if own == dtype)


def autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager[object]:
    """Matrix products and convolutions in a precision; of float32 see full_float32."""
    return full_float32(device) if precision == torch.float32 else torch.autocast(device.type, precision)


def product_type(device: torch.device) -> torch.dtype:
    """What products of float32 tensors are computed in here: autocast's type, where it is on."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32
