"""The detectors by the commands that train them, and load for the models of any of them."""

from functools import partial

from detection import Detector
from detection import load as load_one_of
from methods.cfa import CFA
from simplenet import SimpleNet

DETECTORS: dict[str, type[Detector]] = {"net": SimpleNet, "cfa": CFA}
load = partial(load_one_of, DETECTORS)

__all__ = ["DETECTORS", "load"]
