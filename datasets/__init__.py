"""Image folders: each dataset's published layout, read into samples, and samples into batches."""

from datasets.elpv import ELPV
from datasets.images import Batch, BatchLoader, ImageDataset, Shuffled, check_headers
from datasets.mvtec import MVTEC
from datasets.sample import ClassSamples, DatasetReader, Sample
from datasets.transforms import ImageTransform, RandomTransform

DATASETS: dict[str, DatasetReader] = {"mvtec": MVTEC, "elpv": ELPV}

__all__ = [
    "DATASETS",
    "Batch",
    "BatchLoader",
    "ClassSamples",
    "DatasetReader",
    "ImageDataset",
    "ImageTransform",
    "RandomTransform",
    "Sample",
    "Shuffled",
    "check_headers",
]
