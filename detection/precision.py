"""What a detector may compute in, and the words for it."""

import torch

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def precision_name(dtype: torch.dtype) -> str:
    """The word for a type on the command line."""
    return next(name for name, own in PRECISIONS.items() if own == dtype)
