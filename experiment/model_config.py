"""What the command line says of a trained model that is used: predict, serve, extend, calibrate and export."""

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal

from options import option

# Of predict's options that are of images, what stands where they are not given.
OF_IMAGES: dict[str, Any] = {"batch_size": 8, "num_workers": None, "map": "overlay", "raw_format": "npy"}

REGIONS, LINE = "Regions", "At a line"


def _moved_weights() -> Any:
    return option(None, "A file with the backbone's weights, where those of training have moved.")


def _masks() -> Any:
    return option(
        None,
        "Masks of interest, by the images' names, of a model that was trained with one per image; one for all images "
        "is kept in the model.",
        "--mask_of_interest",
        metavar="FILE|FOLDER",
    )


def _max_pixels() -> Any:
    return option(
        None,
        "Of the largest image that is read; reading takes about 4 bytes a pixel.",
        at_least=1,
        shown="that of dataset's --max_pixels",
    )


@dataclass(frozen=True)
class PredictConfig:
    """Predict images with the model in MODEL_DIR, such as results/.../models/0/mvtec_bottle.

    \b
    PATH is an image or a folder, searched with all folders below it; without any PATH, or with -, paths are read from
    standard input, one a line. Writes predictions.csv (path, score, decision, percentile, p_value, seconds, error,
    picture, map) and the pictures, with --regions also where in them what lies. An image that cannot be read is
    reported in its row, the others go on, and the exit code is 1. Nothing that predict did not write is replaced, and
    earlier predictions are kept beside --out unless the new ones say the same. With --watch they stay in it, and the
    images that they are of are not scored again.
    """

    model_dir: Path = option(MISSING, "Of the model.", argument=True)
    paths: tuple[str, ...] = option(MISSING, "Images or folders.", metavar="[PATH]...", argument=True)
    out: Path = option(
        Path("predictions"), "Folder for what is written: new, empty, or with earlier predictions alone."
    )
    batch_size: int | None = option(
        None, "Images scored at once.", at_least=1, at_most=100_000, shown=str(OF_IMAGES["batch_size"])
    )
    num_workers: int | None = option(
        None, "Threads that read images.", at_least=1, at_most=1000, shown="one per core, 16 at most"
    )
    gpu: int = option(0, "CUDA device; the CPU is used where there is none.", at_least=0)
    threshold: float | None = option(None, "Image score above which is anomalous.", shown="the model's")
    map: Literal["raw", "overlay", "both", "none"] | None = option(
        None, "overlay: PNGs of image, map and both; raw: the map's values.", shown=OF_IMAGES["map"]
    )
    raw_format: Literal["npy", "tiff"] | None = option(None, "Of raw maps, float32.", shown=OF_IMAGES["raw_format"])
    full_size: bool = option(
        False, "Maps of each image's own size; NaN where the model does not look, beyond the crop."
    )
    max_pixels: int | None = _max_pixels()
    mask_of_interest: Path | None = _masks()
    backbone_weights: str | None = _moved_weights()
    regions: bool = option(
        False,
        "Write regions.csv, a row per region of pixels above the pixel threshold, and outline them.",
        group=REGIONS,
    )
    min_area: int | None = option(
        None, "Of the smallest region, in pixels of the image.", at_least=1, shown="1", group=REGIONS
    )
    pixel_threshold: float | None = option(
        None, "Pixel score above which a region is.", shown="the model's", group=REGIONS
    )
    region_masks: bool = option(False, "A PNG per image, 255 where a region is, else 0.", group=REGIONS)
    contours: Literal["geojson", "coco"] | None = option(
        None,
        "Outlines for labelling tools: geojson, a file per image, or coco, one of all.",
        shown="none",
        group=REGIONS,
    )
    watch: Path | None = option(
        None,
        "Score each image that comes into this folder, once and as a whole, until Ctrl-C; rows are added to "
        "predictions.csv.",
        metavar="FOLDER",
        group=LINE,
    )
    stream: Literal["csv", "jsonl"] | None = option(
        None, "Write each row to standard output too, at once: csv or jsonl.", shown="none", group=LINE
    )
    latency: bool = option(
        False, "Add decode_ms, embed_ms and score_ms to the table, milliseconds per image.", group=LINE
    )
    warm_up: int = option(0, "Score so many black batches first.", at_least=0, at_most=1000, group=LINE)


@dataclass(frozen=True)
class ExtendConfig:
    """Take the normal images in FOLDER, and in all folders below it, into the memory bank of the model in MODEL_DIR.

    The images that it was trained on are not needed. A model of its own is written; the one in MODEL_DIR stays as it
    is. The bank keeps its size, unless it keeps all patches; thresholds are set anew, by the images in FOLDER alone.
    """

    model_dir: Path = option(MISSING, "Of the model.", argument=True)
    folder: Path = option(MISSING, "With further normal images.", argument=True)
    out: Path = option(Path("extended"), "Folder for the new model, which must not be there yet.")
    train_val_split: float = option(
        1.0,
        "Share of the images that is taken in; thresholds are of the rest, or of those where it is all of them.",
        above=0,
        at_most=1,
    )
    batch_size: int = option(8, "Images embedded at once.", at_least=1, at_most=100_000)
    num_workers: int | None = option(
        None,
        "Processes that read images; 0 reads in the main one. auto: one per core, 16 at most.",
        at_least=0,
        at_most=1000,
        empty_word="auto",
    )
    gpu: int = option(0, "CUDA device; the CPU is used where there is none.", at_least=0)
    mask_of_interest: Path | None = _masks()
    backbone_weights: str | None = _moved_weights()


@dataclass(frozen=True)
class CalibrateConfig:
    """Set the thresholds of the model in MODEL_DIR by fresh good images: those in FOLDER and in all folders below it.

    The model must not have seen them. One of its own is written; the one in MODEL_DIR stays as it is. Says what share
    of good parts the threshold will reject, with its 95 % interval, and which images score far above the others: these
    count all the same.
    """

    model_dir: Path = option(MISSING, "Of the model.", argument=True)
    folder: Path = option(MISSING, "With fresh good images.", argument=True)
    bad: Path | None = option(None, "Folder with bad images, of which it is said how many are found.")
    false_alarms: float = option(
        0.01,
        "Share of good images that is to be expected above the image threshold, at most; of their pixels, the share "
        "above the pixel threshold.",
        above=0,
        below=1,
    )
    out: Path = option(Path("calibrated"), "Folder for the new model, which must not be there yet.")
    batch_size: int = option(OF_IMAGES["batch_size"], "Images scored at once.", at_least=1, at_most=100_000)
    num_workers: int | None = option(
        None, "Threads that read images.", at_least=1, at_most=1000, shown="one per core, 16 at most"
    )
    gpu: int = option(0, "CUDA device; the CPU is used where there is none.", at_least=0)
    max_pixels: int | None = _max_pixels()
    mask_of_interest: Path | None = _masks()
    backbone_weights: str | None = _moved_weights()


@dataclass(frozen=True)
class ServeConfig:
    """Serve the models in the folders MODEL: a page to look at images with, and the same for programs.

    \b
    The page takes images that are dropped on it, shows score, percentile, decision, map and regions, and tries
    thresholds on the images of --folder. Programs send images to /predict and read JSON; /health and /metrics say how
    it is. Ends with Ctrl-C. Needs the packages of requirements-serve.txt.
    """

    models: tuple[Path, ...] = option(MISSING, "Of the models.", metavar="MODEL...", argument=True)
    host: str = option("127.0.0.1", "Address to listen at; others than this machine can reach 0.0.0.0.")
    port: int = option(8000, "Port to listen at; 0: one that is free.", at_least=0, at_most=65535)
    folder: Path | None = option(
        None,
        "Folder of images to try thresholds on, scored at the start: good ones in its folder good, bad ones in others. "
        "Or a predictions.csv of predict or of a run.",
        metavar="PATH",
    )
    watch: Path | None = option(
        None, "Score each image that comes into this folder, once and as a whole.", metavar="FOLDER"
    )
    max_upload: int = option(50, "Megabytes of a request.", at_least=1, at_most=100_000)
    max_images: int = option(16, "Images of a request.", at_least=1, at_most=10_000)
    max_pixels: int = option(
        40_000_000, "Of the largest image that is read; its map and regions take about 20 bytes a pixel.", at_least=1
    )
    warm_up: int = option(1, "Score so many black images with each model first.", at_least=0, at_most=1000)
    gpu: int = option(0, "CUDA device; the CPU is used where there is none.", at_least=0)
    backbone_weights: str | None = _moved_weights()


@dataclass(frozen=True)
class ExportConfig:
    """Export the model in MODEL_DIR: RGB pixels of the model's size in, image scores and anomaly maps out.

    Normalisation, backbone, patches, detector, upsampling and smoothing are inside; the batch size is free. The
    file is checked against PyTorch before it is put in its place.
    """

    model_dir: Path = option(MISSING, "Of the model.", argument=True)
    style: Literal["onnx", "torch_export"] = option(
        "onnx", "onnx needs the packages of requirements-export.txt.", "--format"
    )
    out: Path | None = option(None, "The file.", shown="in MODEL_DIR, by its name", is_file=True)
    half: bool = option(False, "Compute in float16; scores and maps stay float32.")
    input: Literal["uint8", "float"] = option("uint8", "Of the input [batch, H, W, 3], RGB: 0 to 255, or 0 to 1.")
    opset: int | None = option(
        None,
        "ONNX operator set, such as 17 for an older runtime.",
        at_least=1,
        at_most=999,
        shown="the exporter's",
    )
    backbone_weights: str | None = _moved_weights()
