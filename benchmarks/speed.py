"""How long each stage takes, beside the plain way to do it and beside what no code could beat on this machine.

    python benchmarks/speed.py                    the paper's settings on this machine, every number from this one run
    python benchmarks/speed.py --precision fp32

Every row is the median of several rounds; the columns of a row are measured in turn, so that a machine that slows down
slows all of them. The plain way computes in float32, as it usually does. The images are random 900 x 900 PNGs and the
backbone has random weights: neither changes the time.
"""

import argparse
import contextlib
import io
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as main.py does
sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import torch
from PIL import Image

import backbones
import metrics
from benchmarks import reference
from datasets import BatchLoader, ImageDataset, ImageTransform, Sample, Shuffled, normalised
from detection import autocast
from detection.checkpoint import backbone_digest, save
from detection.decision import Thresholds
from detection.description import Description
from experiment.machine.allocator import kept_blocks
from experiment.machine.device import best_precision, choose_precision
from experiment.model_config import ExportConfig, PredictConfig
from experiment.use.export import export
from experiment.use.predict import predict
from simplenet import SimpleNet, load
from simplenet.anomalous_features import FeatureNoise
from simplenet.training import Trainer

LAYERS = ["layer2", "layer3"]
SIZE, DIM, HIDDEN, BATCH, TRAIN, TEST = 288, 1536, 1024, 8, 64, 32
MVTEC_TRAIN, MVTEC_TEST = 242, 115  # images of an average MVTec AD class
META_EPOCHS, GAN_EPOCHS = 40, 4
INSTRUCTIONS = {
    "AVX2": torch.cpu._is_avx2_supported,
    "AVX512": torch.cpu._is_avx512_supported,
    "AVX512-BF16": torch.cpu._is_avx512_bf16_supported,
    "AMX": torch.cpu._is_amx_tile_supported,
}


def medians(rounds: int, *actions: Callable[[], object]) -> list[float]:
    """Median seconds of each action over interleaved rounds, after one round that is not counted."""
    times: list[list[float]] = [[] for _ in actions]
    for i in range(rounds + 1):
        for action, own in zip(actions, times, strict=True):
            start = time.perf_counter()
            action()
            if i > 0:
                own.append(time.perf_counter() - start)
    return [statistics.median(own) for own in times]


def make_images(folder: Path, count: int) -> list[Sample]:
    """Photograph-like noise: smooth enough that PNG decodes at a usual rate."""
    rng = np.random.default_rng(0)
    samples = []
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (90, 90, 3), dtype=np.uint8)).resize((900, 900), Image.BICUBIC)
        pixels = np.asarray(coarse, dtype=np.int16) + rng.integers(-4, 5, (900, 900, 3))
        path = folder / f"{i:03}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
        samples.append(Sample(path, (), False, "made", "good"))
    return samples


def instructions() -> str:
    """What the CPU has that decides how fast matrices are multiplied, in one line."""
    found = [name for name, has in INSTRUCTIONS.items() if has()]
    return ", ".join(found) or "none of " + ", ".join(INSTRUCTIONS)


def row(stage: str, ours: float, plain: float | None = None, floor: float | None = None, unit: str = "s") -> None:
    """Print a line of the table."""
    shown = [f"{stage:<44}{ours:>9.3f}"]
    shown.append(f"{plain:>9.3f}{plain / ours:>8.1f} x" if plain is not None else " " * 19)
    shown.append(f"{floor:>9.3f}{ours / floor:>8.2f} x" if floor is not None else "")
    print("".join(shown), unit if unit != "s" else "", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=["auto", "fp32", "bf16"], default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    cpu = torch.device("cpu")
    if arguments.precision == "bf16" and best_precision(cpu) != "bf16":
        sys.exit(f"Error: --precision bf16: this CPU has {instructions()} and would emulate it: choose fp32")
    precision = choose_precision(arguments.precision, cpu)
    with tempfile.TemporaryDirectory() as folder, kept_blocks():  # as runs do
        measure(Path(folder), precision, arguments.rounds)


def measure(folder: Path, precision: torch.dtype, rounds: int) -> None:
    """All stages, one line each."""
    say = lambda text: print(text, flush=True)  # noqa: E731
    machine = f"{platform.processor() or platform.machine()} with {instructions()}"
    say(f"{machine}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    say(f"{'seconds':<44}{'ours':>9}{'plain':>9}{'gain':>10}{'floor':>9}{'above it':>10}")
    samples = make_images(folder, TRAIN)
    transform = ImageTransform(329, SIZE)
    dataset = ImageDataset(samples, transform)
    workers = BatchLoader(dataset, BATCH, os.cpu_count() or 1)
    extractor = backbones.load("wideresnet50", "random")
    options = {"pretrain_embed_dimension": DIM, "target_embed_dimension": DIM, "dsc_hidden": HIDDEN, "pre_proj": 1}
    detector = SimpleNet(
        extractor, LAYERS, (SIZE, SIZE), noise_std=0.015, dsc_margin=0.5, precision=precision, **options
    )
    detector.eval()
    pixels = torch.stack([dataset.read(i)[0] for i in range(BATCH)])
    images = normalised(pixels)
    cpu = torch.device("cpu")

    @torch.no_grad()
    def backbone() -> list[torch.Tensor]:
        with autocast(cpu, precision):
            return extractor(images, LAYERS)

    @torch.no_grad()
    def plain_embed() -> torch.Tensor:
        return reference.embed(extractor(images, LAYERS), DIM, DIM, 3)

    def decode(loader: BatchLoader) -> Callable[[], None]:
        return lambda: [None for _ in loader] and None

    ours, plain = medians(3, decode(workers), decode(BatchLoader(dataset, BATCH, 0)))
    decode_image = ours / TRAIN
    row(f"decode and resize, {TRAIN} images", ours, plain)

    with torch.no_grad():
        maps = backbone()
        float_maps = [m.float() for m in maps]
    embed_maps, unfold_maps = medians(
        rounds,
        lambda: backbones.embed_patches(maps, DIM, DIM),
        lambda: reference.embed(float_maps, DIM, DIM, 3),
    )
    row(f"patch embedding, {BATCH} images", embed_maps, unfold_maps)
    embed, plain_embedding, floor = medians(rounds, lambda: detector.embed(images), plain_embed, backbone)
    row(f"backbone and patch embedding, {BATCH} images", embed, plain_embedding, floor)

    predict, floor = medians(rounds, lambda: detector.predict(images), backbone)
    row(f"predict from tensors, {BATCH} images", predict, None, floor)

    measure_trained(folder, detector, {**options, "noise_std": 0.015, "dsc_margin": 0.5}, backbone, pixels, rounds)

    with torch.no_grad():
        embeddings = detector.embed(images)
    features = embeddings.flatten(0, 2)
    trainer = Trainer(detector.members, FeatureNoise(0.015), 0.5, 2e-4, precision=precision)
    plain_training = reference.Training(DIM, HIDDEN, 0.015, 0.5)
    float_features = features.float()
    weight = torch.randn(HIDDEN, DIM).to(precision)
    gradient = torch.randn(len(features), HIDDEN).to(precision)

    def products() -> None:
        for _ in range(2):  # features and noise
            torch.mm(features, weight.T)
            torch.mm(gradient.T, features)

    detector.train()
    step, plain_step, floor = medians(
        rounds, lambda: trainer.step([features]), lambda: plain_training.step(float_features), products
    )
    row(f"train step, {BATCH} images, floor: its 4 products", step, plain_step, floor)

    bank = backbones.FeatureBank((TRAIN, *embeddings.shape[1:]), precision, "host", cpu)
    bank.fill(embeddings for _ in range(TRAIN // BATCH))
    order = Shuffled(TRAIN, 0)
    plain_loader = BatchLoader(dataset, BATCH, 2)

    def bank_pass() -> None:
        for batch in bank.batches(BATCH, order):
            trainer.step([batch.flatten(0, 2)])

    @torch.no_grad()
    def embed_plainly(batch: torch.Tensor) -> torch.Tensor:
        return reference.embed(extractor(batch, LAYERS), DIM, DIM, 3)

    def plain_pass() -> None:
        for batch in plain_loader:
            plain_training.step(embed_plainly(normalised(batch.images)))

    one_pass, plain_one_pass = medians(2, bank_pass, plain_pass)
    row(f"pass over {TRAIN} training images", one_pass, plain_one_pass)

    detector.eval()
    test_bank = embeddings.repeat(TEST // BATCH, 1, 1, 1)
    (score,) = medians(rounds, lambda: detector.score(test_bank))
    row(f"score {TEST} test images from the bank", score)

    rng = np.random.default_rng(0)
    anomaly_maps = rng.normal(size=(MVTEC_TEST, SIZE, SIZE)).astype(np.float32)
    masks = np.zeros(anomaly_maps.shape, bool)
    for i in range(30, MVTEC_TEST):
        y, x = rng.integers(0, SIZE - 60, 2)
        masks[i, y : y + 50, x : x + 40] = True
    anomaly_maps[masks] += 1.5
    aupro = anomalib_aupro(masks, anomaly_maps)
    if aupro is None:
        (pixel_metrics,) = medians(rounds, lambda: metrics.pixel_metrics(masks, anomaly_maps))
        row(f"AUROC, AP, F1 and PRO of {MVTEC_TEST} maps", pixel_metrics)
    else:
        pixel_metrics, theirs = medians(3, lambda: metrics.pixel_metrics(masks, anomaly_maps), aupro)
        row(f"AUROC, AP, F1 and PRO of {MVTEC_TEST} maps", pixel_metrics)
        row("  anomalib: AUPRO alone", pixel_metrics, theirs)

    passes = META_EPOCHS * GAN_EPOCHS
    per_image = embed / BATCH + decode_image
    ours_class = (
        per_image * (MVTEC_TRAIN + MVTEC_TEST)
        + passes * one_pass * MVTEC_TRAIN / TRAIN
        + META_EPOCHS * (score * MVTEC_TEST / TEST + pixel_metrics)
    )
    plain_predict = plain_embedding / BATCH + decode_image
    plain_class = passes * plain_one_pass * MVTEC_TRAIN / TRAIN + META_EPOCHS * (
        plain_predict * MVTEC_TEST + pixel_metrics
    )
    row(f"estimate: a class, {META_EPOCHS} x {GAN_EPOCHS} epochs, {MVTEC_TRAIN} + {MVTEC_TEST} images (h)",
        ours_class / 3600, plain_class / 3600)  # fmt: skip
    tensors = torch.stack([dataset[i][0] for i in range(TRAIN)])
    theirs = anomalib_patchcore(tensors)
    ours_fit = embed * TRAIN / BATCH + passes * one_pass
    if theirs is not None:
        row(f"fit on {TRAIN} images; plain: anomalib's PatchCore", ours_fit, theirs)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    say(f"peak memory of this process, both ways together: {peak:.1f} GiB")


def measure_trained(
    folder: Path,
    detector: SimpleNet,
    options: dict[str, object],
    backbone: Callable[[], object],
    pixels: torch.Tensor,
    rounds: int,
) -> None:
    """The predict command on images of the model's own size, which cost next to nothing to read; and ONNX Runtime."""
    model, inputs = folder / "model", folder / "inputs"
    model.mkdir()
    inputs.mkdir()
    shown = pixels.permute(0, 2, 3, 1).contiguous().numpy()  # [BATCH, SIZE, SIZE, 3]
    for i in range(TRAIN):
        Image.fromarray(shown[i % BATCH]).save(inputs / f"{i:03}.bmp")
    description = Description(
        title="made",
        dataset="made",
        class_name="made",
        backbone={"name": "wideresnet50", "weights": "random", "seed": 0, "layers": LAYERS},
        backbone_sha256=backbone_digest(detector),
        transform={"resize": SIZE, "imagesize": SIZE, "resize_mode": "aspect"},
        options=options,
        seed=0,
        precision=str(detector.precision).removeprefix("torch."),
        thresholds=Thresholds(0.0, 0.0, 0.995, "training images", TRAIN),
        map_range=(-1.0, 1.0),
        metrics={},
    )
    save(model, detector, description)
    trained = load(model)
    config = PredictConfig(model, (str(inputs),), folder / "out", BATCH, 2, 0, None, "none", None, False, None)
    with contextlib.redirect_stderr(io.StringIO()), mock.patch("experiment.use.predict.load", lambda *_: trained):
        command, floor = medians(3, lambda: predict(config), backbone)
    row(f"predict command, {BATCH} of {TRAIN} images in files", command * BATCH / TRAIN, None, floor)
    try:
        import onnxruntime
    except ImportError:
        return
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        export(ExportConfig(model, "onnx", folder / "model.onnx", False, "uint8", None))
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    exact = load(model).detector
    exact.precision = torch.float32
    ours, theirs = medians(rounds, lambda: exact.predict_read(pixels), lambda: session.run(None, {"images": shown}))
    row(f"predict {BATCH} images in fp32; plain: ONNX Runtime", ours, theirs)


def anomalib_aupro(masks: np.ndarray, maps: np.ndarray) -> Callable[[], object] | None:
    """anomalib's AUPRO on the same maps, or None where it is not installed (benchmarks/requirements.txt)."""
    try:
        from anomalib.metrics.aupro import _AUPRO
    except ImportError:
        return None

    def run() -> object:
        metric = _AUPRO()
        low, high = maps.min(), maps.max()
        metric.update(torch.from_numpy((maps - low) / (high - low)), torch.from_numpy(masks.astype(int)))
        return metric.compute()

    return run


def anomalib_patchcore(images: torch.Tensor) -> float | None:
    """Seconds of one PatchCore fit by anomalib (embedding and a coreset of a tenth), or None without anomalib."""
    try:
        from anomalib.models.image.patchcore.torch_model import PatchcoreModel
    except ImportError:
        return None
    model = PatchcoreModel(layers=LAYERS, backbone="wide_resnet50_2", pre_trained=False).train()
    start = time.perf_counter()
    with torch.no_grad():
        for batch in images.split(BATCH):
            model(batch)
        model.subsample_embedding(0.1)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
