"""Pretrained networks and what is read off them: named layer maps and patch embeddings."""

from backbones.alignment import Alignment
from backbones.bank import FeatureBank
from backbones.extractor import INPUT, FeatureExtractor
from backbones.features import Features, Masked, each
from backbones.layouts import LayerInfo
from backbones.names import PIXELS, TOGETHER
from backbones.normalisation import IMAGENET, Normalisation, normalisation_of
from backbones.patches import embed_patches
from backbones.several import Several, load
from backbones.zoo import shapes_only

__all__ = [
    "IMAGENET",
    "INPUT",
    "PIXELS",
    "TOGETHER",
    "Alignment",
    "FeatureBank",
    "FeatureExtractor",
    "Features",
    "LayerInfo",
    "Masked",
    "Normalisation",
    "Several",
    "each",
    "embed_patches",
    "load",
    "normalisation_of",
    "shapes_only",
]
