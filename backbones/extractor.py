"""A pretrained network that is asked for named layers and runs no further than the last of them."""

import difflib
import importlib
import inspect
import logging
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from backbones.alignment import middles
from backbones.centres import Centres, middle
from backbones.layouts import LayerInfo, Layout, NoMapError, Shape, Size, find_layout
from backbones.names import PIXELS, TORCHVISION, find_model
from backbones.normalisation import IMAGENET, Normalisation
from backbones.trace import LARGER, Patches, Traced, trace
from backbones.weights import PACKAGED, fill, packaged_state
from backbones.zoo import shapes_only, timm
from errors import DataError, UsageError, first_line

INPUT = "input"  # of PIXELS


def load(
    name: str, weights: str = "pretrained", seed: int = 0, normalisation: Normalisation = IMAGENET
) -> "FeatureExtractor":
    """A feature extractor by name; nothing is downloaded or read before its first use.

    Args:
        name: a name of backbones.names.BACKBONES, any timm model name, also as timm's hub has it ("timm/NAME"), or
            "torchvision/NAME".
        weights: "pretrained" (timm's or torchvision's download, or the installed package of one of weights.PACKAGED),
            "random", or the path of a .pth or .safetensors state dict.
        seed: seeds random weights.
        normalisation: what the network is given images by; see normalisation_of.

    Raises:
        UsageError: unknown name or tag (the nearest ones are offered), or weights that are neither a keyword nor a
            file.
    """
    model_name = find_model(name)
    if weights not in ("pretrained", "random"):
        path = Path(weights)
        if path.suffix not in (".pth", ".pt", ".safetensors"):
            raise UsageError(
                f"backbone weights '{weights}': expected pretrained, random, or a .pth or .safetensors file"
            )
        if not path.is_file():
            raise UsageError(f"backbone weights '{weights}': no such file")
    return FeatureExtractor(name, model_name, weights, seed, normalisation)


class FeatureExtractor(nn.Module):
    """Layer maps of a network, cut behind the last layer asked for; built and filled with weights on first use.

    Parameters are frozen and the network is in eval mode until the caller changes that (`--train_backbone`).
    """

    def __init__(
        self, name: str, model_name: str, weights: str, seed: int, normalisation: Normalisation = IMAGENET
    ) -> None:
        super().__init__()
        self.name = name
        self.model_name = model_name
        self.weights = weights
        self.seed = seed
        self.normalisation = normalisation
        self.network: nn.Module | None = None
        self._cut: tuple[tuple[str, ...], Size] | None = None
        self._centres: dict[tuple[tuple[str, ...], Size], list[tuple[Centres, Centres]]] = {}

    def forward(self, images: Tensor, layers: Sequence[str]) -> list[Tensor]:
        """Layer maps of images.

        Args:
            images: float [B, 3, H, W], normalised with ImageNet's mean and standard deviation; from there they are
                brought to the extractor's own normalisation.
            layers: module names, such as "layer2" or "blocks.4".

        Returns:
            One [B, C_l, H_l, W_l] per layer, in the order asked for; token outputs are folded back to their grid.

        Raises:
            UsageError: a layer that the backbone lacks, or whose output is not clearly a spatial map.
            DataError: weights that cannot be downloaded or do not fit.
        """
        size = images.shape[-2], images.shape[-1]
        network = self.build(layers, size, images.device)
        images = self.normalisation.of_imagenets(images)
        outputs = network(images.contiguous(memory_format=torch.channels_last))
        return [own.fold(outputs[layer]) for layer, own in zip(layers, self._look(layers, size).layouts, strict=True)]

    def train(self, mode: bool = True) -> "FeatureExtractor":
        """As in nn.Module. Predictions ask for eval mode, and hundreds of modules take five times as long to set."""
        return self if all(own.training == mode for own in self.modules()) else super().train(mode)

    @torch.inference_mode(False)  # where a first image is in inference, what is built must still be as others
    def build(
        self, layers: Sequence[str], image_size: tuple[int, int], device: torch.device | str = "cpu"
    ) -> nn.Module:
        """The network cut for these layers and this (height, width); weights are read the first time only."""
        if self.network is None or self._cut != (tuple(layers), image_size):
            made_for = image_size if self._look(layers, image_size).is_made_for_size else None
            model, filled = self._load_model(made_for)
            network = self._cut_network(model, layers, image_size)
            self._check_filled(network, filled, made_for and _own_size(model))
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
        return self._look(layers, image_size).infos

    @torch.inference_mode(False)
    def centres(
        self, layers: Sequence[str], image_size: Size, device: torch.device | str = "cpu"
    ) -> list[tuple[Centres, Centres]]:
        """Where the rows and columns of layers look: as traced, or of learned weights measured, once.

        Weights that were learned may look elsewhere than in the middle of their windows: those of networks that are
        padded on one side alone do.
        """
        key = (tuple(layers), image_size)
        if key not in self._centres:
            traced = [info.centres for info in self.layer_info(layers, image_size)]
            if self.weights != "random":
                network = self.build(layers, image_size, device)
                traced = middles(network, lambda images: self(images, layers), image_size, traced, device)
            self._centres[key] = traced
        return self._centres[key]

    def check_size(self, layers: Sequence[str], image_size: Size) -> None:
        """See that the backbone sees all of images of (height, width).

        Raises:
            UsageError: it cuts them into patches, and some rows or columns are left over; the nearest sizes without.
        """
        patches = self._look(layers, image_size).patches
        unseen = [patches.unseen(length) for length in image_size] if patches else [0, 0]
        if any(unseen):
            nearest = " or ".join(map(str, patches.nearest(image_size[unseen[0] == 0])))
            raise UsageError(
                f"backbone '{self.name}' cuts images into patches of {patches.side} x {patches.side} pixels and would "
                f"not see the last {unseen[0]} rows and {unseen[1]} columns of {image_size[0]} x {image_size[1]}: "
                f"choose --imagesize {nearest}"
            )

    def _look(self, layers: Sequence[str], image_size: Size) -> "_Seen":
        """What is known of layers from running the network without memory, once in a process; see layer_info."""
        key = (self.model_name, tuple(layers), image_size)
        if key not in _SEEN:
            _SEEN[key] = self._run_on_meta(layers, image_size)
        return _SEEN[key]

    def _run_on_meta(self, layers: Sequence[str], size: Size) -> "_Seen":
        """Two runs, the second on larger images, none of which needs weights or memory."""
        with shapes_only():
            model = self._create_model().eval()
            self._check_layers(model, layers)
            for factors in LARGER:  # before the size that is wanted, to which it is then set back
                larger = size[0] * factors[0], size[1] * factors[1]
                second, _ = self._trace_at(model, layers, larger)
                if second.error is None:
                    break
            first, is_made_for_size = self._trace_at(model, layers, size)
        if first.error is not None:
            own = _own_size(model)
            hint = f"; it was made for {own[0]} x {own[1]}" if own and own != size else ""
            raise UsageError(
                f"backbone '{self.name}' cannot take images of {size[0]} x {size[1]}: {first_line(first.error)}{hint}"
            ) from first.error
        layouts, infos = [], []
        for layer in layers:
            if layer not in first.shapes:
                raise UsageError(f"layer '{layer}' of backbone '{self.name}' gives no spatial map (it gives nothing)")
            after = second.shapes.get(layer)
            try:
                layout = find_layout(
                    first.shapes[layer], after, (size, larger), (first.maps, second.maps if second else ())
                )
            except NoMapError as error:
                raise UsageError(f"layer '{layer}' of backbone '{self.name}' {error}") from error
            layouts.append(layout)
            channels = first.shapes[layer][layout.axes[0]]
            centres = _centres(layout, first, layer, after, size, larger)
            stride, signed = round(size[0] / layout.grid[0]), first.signed[layer]
            infos.append(LayerInfo(layer, channels, stride, layout.grid, centres, signed))
        return _Seen(infos, layouts, first.patches, is_made_for_size)

    def _trace_at(self, model: nn.Module, layers: Sequence[str], size: Size) -> tuple[Traced, bool]:
        """What a network on the meta device does with a size, and whether it had to be made again for it."""
        traced = trace(model, layers, size)
        if traced.error is not None and _can_be_made_for_sizes(model):
            return trace(self._create_model(image_size=size).eval(), layers, size), True
        return traced, False

    def _create_model(self, pretrained: bool = False, image_size: Size | None = None) -> nn.Module:
        """The whole network, with random weights unless pretrained; made for a size of images where one is given."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            if self.model_name == PIXELS:
                return nn.Sequential(OrderedDict({INPUT: nn.Identity()}))
            if self.model_name.startswith(TORCHVISION):
                torchvision_models = importlib.import_module("torchvision.models")
                weights = "IMAGENET1K_V1" if pretrained else None
                return torchvision_models.get_model(self.model_name.removeprefix(TORCHVISION), weights=weights)
            return timm.create_model(self.model_name, pretrained=pretrained, img_size=image_size)

    def _load_model(self, image_size: Size | None = None) -> tuple[nn.Module, set[str] | None]:
        """The whole network with its weights, and the names of the tensors that a file filled (None: all).

        Args:
            image_size: that it is made for; None: its own.
        """
        if self.weights == "random":
            return self._create_model(image_size=image_size), None
        if self.weights == "pretrained" and self.name in PACKAGED:
            model = self._create_model()
            model.load_state_dict(dict(zip(model.state_dict(), packaged_state(self.name).values(), strict=True)))
            return model, None
        if self.weights == "pretrained":
            return self._download(image_size), None
        model = self._create_model(image_size=image_size)
        return model, fill(model, Path(self.weights))

    def _download(self, image_size: Size | None) -> nn.Module:
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        try:
            return self._create_model(pretrained=True, image_size=image_size)
        except (OSError, RuntimeError, ValueError) as error:
            if image_size is not None and "size mismatch" in str(error):
                raise UsageError(
                    f"the pretrained weights of backbone '{self.name}' are of images of another size than "
                    f"{image_size[0]} x {image_size[1]}, and timm does not bring them to it: choose theirs"
                ) from error
            raise DataError(
                f"weights of backbone '{self.name}' cannot be downloaded ({first_line(error)}); "
                f"pass a state dict of {self.model_name} with --backbone_weights FILE.pth or FILE.safetensors"
            ) from error

    def _check_filled(self, network: nn.Module, filled: set[str] | None, own: Size | None) -> None:
        """Raises DataError where a file left tensors out; of a network made for another size than its own, says so."""
        needed = {name for name in network.state_dict() if not name.endswith("num_batches_tracked")}
        missing = sorted(needed - filled) if filled is not None else []
        if missing:
            raise DataError(
                f"backbone weights '{self.weights}' do not fit {self.model_name}: "
                f"{len(missing)} of {len(needed)} tensors are missing or of another shape, such as '{missing[0]}'"
                + (f"; if they are of images of {own[0]} x {own[1]}, choose --imagesize {own[0]}" if own else "")
            )

    def _check_layers(self, model: nn.Module, layers: Sequence[str]) -> None:
        """Raises UsageError where the network lacks a layer; those that it has are listed."""
        modules = {name for name, _ in model.named_modules()}
        for layer in layers:
            if not layer or layer not in modules:
                names = _layer_names(model)
                near = difflib.get_close_matches(layer, names, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise UsageError(
                    f"backbone '{self.name}' has no layer '{layer}': {hint}its layers are {', '.join(names)}"
                )

    def _cut_network(self, model: nn.Module, layers: Sequence[str], image_size: Size) -> nn.Module:
        """The part of the network that the layers need, returning {layer: output}."""
        if hasattr(model, "set_input_size"):
            model.set_input_size(img_size=image_size)
        with warnings.catch_warnings():  # torchvision warns that train and eval graphs differ by their dropout nodes
            warnings.simplefilter("ignore", UserWarning)
            try:
                return timm.models.create_feature_extractor(model, list(layers))
            except Exception as error:  # tracing may raise anything
                names = ", ".join(layers)
                raise UsageError(
                    f"backbone '{self.name}' cannot be cut at {names} ({first_line(error)}): choose another backbone"
                ) from error


@dataclass(frozen=True)
class _Seen:
    """What running a network without memory showed of some layers and a size of images."""

    infos: list[LayerInfo]
    layouts: list[Layout]
    patches: Patches | None
    is_made_for_size: bool


_SEEN: dict[tuple[str, tuple[str, ...], Size], _Seen] = {}  # whatever the weights are


def _own_size(model: nn.Module) -> Size | None:
    """Height and width of the images that a network of timm was made for."""
    shape = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    return shape and (shape[-2], shape[-1])


def _can_be_made_for_sizes(model: nn.Module) -> bool:
    """Whether a network's size of images is said where it is made, and there alone."""
    return "img_size" in inspect.signature(type(model)).parameters and not hasattr(model, "set_input_size")


def _centres(
    layout: Layout, first: Traced, layer: str, after: Shape | str | None, size: Size, larger: Size
) -> tuple[Centres, Centres]:
    """Where a layer's rows and columns look: as traced, else as the last map of its grid, else evenly spread."""
    if len(layout.axes) == 3 and all(axis in first.centres[layer] for axis in layout.axes[1:]):
        return tuple(first.centres[layer][axis] for axis in layout.axes[1:])
    if layout.grid in first.maps:
        return first.maps[layout.grid]
    if len(layout.axes) == 2:
        return tuple(middle(cells, length) for cells, length in zip(layout.grid, size, strict=True))
    more = [after[axis] for axis in layout.axes[1:]]
    grown = zip(layout.grid, more, size, larger, strict=True)  # borders that are padded do not count
    return tuple(middle(b - a, longer - length) for a, b, length, longer in grown)


def _layer_names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if name and name.count(".") <= 1]
