"""Several backbones side by side, as one whose layers are theirs: "1.layer2" is layer2 of the second."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from backbones import extractor
from backbones.centres import Centres
from backbones.extractor import FeatureExtractor
from backbones.layouts import LayerInfo, Size
from backbones.names import TOGETHER
from backbones.normalisation import IMAGENET, Normalisation
from errors import UsageError

Found = TypeVar("Found")


def load(
    name: str, weights: str = "pretrained", seed: int = 0, normalisation: Normalisation = IMAGENET
) -> FeatureExtractor:
    """As extractor.load; of several names, joined by TOGETHER, all of them side by side.

    Raises:
        UsageError: as there, of any of them.
    """
    members = [extractor.load(one, weights, seed, normalisation) for one in name.split(TOGETHER)]
    return members[0] if len(members) == 1 else Several(members)


class Several(FeatureExtractor):
    """Feature extractors of one kind of weights, one seed and one normalisation.

    Args:
        members: at least one; the i-th has the layers that are called "i.layer" here.
    """

    def __init__(self, members: Sequence[FeatureExtractor]) -> None:
        first, name = members[0], TOGETHER.join(own.name for own in members)
        super().__init__(name, name, first.weights, first.seed, first.normalisation)
        self.members = nn.ModuleList(members)

    def split(self, layers: Sequence[str]) -> list[tuple[FeatureExtractor, list[str]]]:
        """Every member with its own of the layers, by its own names.

        Raises:
            UsageError: a layer of no member, or a member without a layer.
        """
        found: list[list[str]] = [[] for _ in self.members]
        for layer in layers:
            index, _, own = layer.partition(".")
            if index not in map(str, range(len(found))):
                raise UsageError(f"layer '{layer}' of backbone '{self.name}': expected INDEX.LAYER, such as 0.layer2")
            found[int(index)].append(own)
        for i, (member, own) in enumerate(zip(self.members, found, strict=True)):
            if not own:
                names = ", ".join(f"{i}.{layer}" for layer in member.layers())
                raise UsageError(f"-b {member.name} needs layers, such as -le {i}.layer2: its layers are {names}")
        return list(zip(self.members, found, strict=True))

    def forward(self, images: Tensor, layers: Sequence[str]) -> list[Tensor]:
        """As in FeatureExtractor."""
        return self._gathered(layers, lambda member, own: member(images, own))

    def build(self, layers: Sequence[str], image_size: Size, device: torch.device | str = "cpu") -> nn.Module:
        """As in FeatureExtractor: the networks of all members."""
        return nn.ModuleList(member.build(own, image_size, device) for member, own in self.split(layers))

    def layers(self) -> list[str]:
        """As in FeatureExtractor."""
        return [f"{i}.{layer}" for i, member in enumerate(self.members) for layer in member.layers()]

    def layer_info(self, layers: Sequence[str], image_size: Size) -> list[LayerInfo]:
        """As in FeatureExtractor."""
        infos = self._gathered(layers, lambda member, own: member.layer_info(own, image_size))
        return [replace(info, name=layer) for layer, info in zip(layers, infos, strict=True)]

    def centres(
        self, layers: Sequence[str], image_size: Size, device: torch.device | str = "cpu"
    ) -> list[tuple[Centres, Centres]]:
        """As in FeatureExtractor."""
        return self._gathered(layers, lambda member, own: member.centres(own, image_size, device))

    def check_size(self, layers: Sequence[str], image_size: Size) -> None:
        """As in FeatureExtractor."""
        for member, own in self.split(layers):
            member.check_size(own, image_size)

    def _gathered(
        self, layers: Sequence[str], function: Callable[[FeatureExtractor, list[str]], Sequence[Found]]
    ) -> list[Found]:
        """What a function of a member and its layers finds of each of them, in the order of all layers."""
        found: dict[str, Found] = {}
        for i, (member, own) in enumerate(self.split(layers)):
            found |= {f"{i}.{layer}": one for layer, one in zip(own, function(member, own), strict=True)}
        return [found[layer] for layer in layers]
