"""What computes, and in which precision."""

import os

import click
import torch

from detection.precision import PRECISIONS
from errors import UsageError


def choose_device(gpu: tuple[int, ...]) -> torch.device:
    """The first GPU asked for, or the CPU where there is no CUDA device.

    Raises:
        UsageError: a GPU that does not exist; those that do are listed.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        click.echo(f"No CUDA device found: using the CPU with {torch.get_num_threads()} threads", err=True)
        return torch.device("cpu")
    for index in gpu:
        if index >= count:
            found = ", ".join(f"{i} ({torch.cuda.get_device_name(i)})" for i in range(count))
            raise UsageError(f"--gpu {index} does not exist: this machine has {found}")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS is not deterministic
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # all that is allocated is written before it is read
    return torch.device("cuda", gpu[0])


def device_name(device: torch.device) -> str:
    """What config.json calls a device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The type to compute in; auto is the best for the device. TF32 is allowed unless fp32 is asked for."""
    allow_tf32(name != "fp32")
    name = best_precision(device) if name == "auto" else name
    click.echo(f"Computing in {name}", err=True)
    return PRECISIONS[name]


def allow_tf32(is_allowed: bool) -> None:
    """Whether GPUs may round what float32 products are made of."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = is_allowed


def best_precision(device: torch.device) -> str:
    """bf16 where the device has instructions for it (Ampere and later; AVX512-BF16 or AMX), else fp32."""
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return "bf16" if native else "fp32"
