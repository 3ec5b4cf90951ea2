"""Pretrained networks and what is read off them: named layer maps and patch embeddings."""

from backbones.bank import FeatureBank
from backbones.extractor import INPUT, FeatureExtractor, LayerInfo, load
from backbones.names import PIXELS
from backbones.patches import embed_patches
from backbones.zoo import shapes_only

__all__ = ["INPUT", "PIXELS", "FeatureBank", "FeatureExtractor", "LayerInfo", "embed_patches", "load", "shapes_only"]
