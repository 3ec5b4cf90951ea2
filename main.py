"""Train and evaluate detectors of industrial anomalies from the command line.

python main.py [run options] net [model options] dataset [data options] NAME [DATA_PATH]
"""

import gc
import importlib
import io
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from chain import Chain, IntOrAuto, Link, Number, Standalone, check_grid, parse_grid
from errors import DataError, Interrupted, UsageError
from files import readable

if TYPE_CHECKING:  # experiment brings torch along, which --help need not wait for
    from experiment import DatasetConfig, DetectorConfig, ExportConfig, PredictConfig, ReportConfig
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch, huge pages: large temporaries cost a third on Linux


COUNT = click.IntRange(min=1)
WHOLE = click.IntRange(min=0)
DEPTH = click.IntRange(1, 100)  # of what is built one by one
WIDTH = click.IntRange(1, 1_000_000)  # of what is squared
IMAGES = click.IntRange(1, 100_000)  # of what is written to the disk
SHARE = Number(0, 1)
SETTINGS = {"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 110}


@click.group(cls=Chain, chain=True, context_settings=SETTINGS)
@click.option("--results_path", type=click.Path(path_type=Path), default="results", help="Folder for results.")
@click.option(
    "--gpu", type=WHOLE, multiple=True, default=[0], help="CUDA device, repeatable; the CPU where there is none."
)
@click.option(
    "--seed",
    "seeds",
    type=WHOLE,
    multiple=True,
    default=[0],
    help="Seeds weights, noise and image order. Repeatable: results.csv holds mean and standard deviation.",
)
@click.option("--log_group", default="group", help="Results go to RESULTS_PATH/LOG_PROJECT/LOG_GROUP/RUN_NAME.")
@click.option("--log_project", default="project", help="See --log_group.")
@click.option("--run_name", default="test", help="See --log_group.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    help="Of convolutions, features and matrix products. auto: bf16 where the device computes it natively, else fp32.",
)
@click.option(
    "--feature_bank",
    type=click.Choice(["auto", "device", "host", "disk", "off"]),
    default="auto",
    help="Where the features of a frozen backbone are kept, so that each image is embedded once. "
    "auto: the first with room; off: embed in every pass.",
)
@click.option("--eval_every", type=COUNT, default=1, help="Evaluate after every N meta epochs, and after the last.")
@click.option(
    "--test", is_flag=True, help="Train nothing: evaluate the models of the same command line without --test."
)
@click.option(
    "--on_error",
    type=click.Choice(["stop", "skip"]),
    default="stop",
    help="When a class has bad data, or memory or disk run out. skip: record why in results.csv and failed.json, go on "
    "with the others, and exit with 1.",
)
@click.option(
    "--overwrite",
    is_flag=True,
    help="Start anew: the run that is there under this name is moved aside. Without it, the same command continues it.",
)
@click.option(
    "--grid",
    multiple=True,
    metavar="FLAG=V1,V2,...",
    callback=parse_grid,
    help="A run for each of these values of an option of the detector or of dataset, such as dsc_hidden=512,1024 or "
    "layers_to_extract_from=layer2+layer3,layer3; repeatable, for every combination. Each has a folder in RUN_NAME, "
    "ablation.csv compares them, and images are embedded once where the features stay the same.",
)
@click.option(
    "--jobs",
    type=COUNT,
    show_default="1; with --ray one per CPU",
    help="Jobs at once on the CPUs, each with its share of the threads. Several need Ray.",
)
@click.option("--jobs_per_gpu", type=COUNT, default=1, help="Jobs at once on each --gpu. Several need Ray.")
@click.option(
    "--ray",
    is_flag=False,
    flag_value="local",
    metavar="[ADDRESS]",
    help="Run the jobs by Ray: on the cluster at ADDRESS, such as auto or HOST:6379, else on this machine alone.",
)
@click.option("--save_segmentation_images", is_flag=True, help="Draw every test image with its mask and anomaly map.")
@click.option(
    "--threshold_quantile",
    type=SHARE,
    default=0.995,
    help="Share of held-out normal images (see --train_val_split; else of the training images) that stays at or below "
    "the threshold; of their pixels, below that of pixels.",
)
def main(**_: Any) -> None:
    """Train a detector on normal images, score test images, and write image AUROC, pixel AUROC and PRO per class.

    \b
    One command line is a chain: run options, then a detector with its options, then dataset with its.
      python main.py --run_name demo \\
        net -b efficientnet_lite0 -le blocks.2 -le blocks.4 --pre_proj 1 --auto_noise 0.25 \\
        dataset --resize 256 --imagesize 256 elpv
    Detectors are net, cfa, rd, logicrd and multimodal; see "net --help" and so on. Exit codes: 0 done, 1 bad data or
    a full disk or memory, 2 bad usage, 130 interrupted, 143 terminated; after the last two the same command continues.
    """


BACKBONE_NAMES = click.option(
    "--backbone_names",
    "-b",
    multiple=True,
    help="wideresnet50, resnet18, efficientnet_lite0, any timm name; "
    "NAME.seed-7 seeds one backbone. Repeatable: one model each.",
)
LAYERS = click.option(
    "--layers_to_extract_from",
    "-le",
    multiple=True,
    help="Layer to read, repeatable; the first gives the patch grid. "
    "With several backbones INDEX.LAYER, such as 0.layer2.",
)
BACKBONE_WEIGHTS = click.option(
    "--backbone_weights", default="pretrained", help="pretrained, random, or a .pth or .safetensors state dict."
)
NORMALISATION = click.option(
    "--normalisation",
    type=click.Choice(["imagenet", "model"]),
    default="imagenet",
    help="Mean and standard deviation that the backbone is given images by. imagenet: ImageNet's, as in the original; "
    "model: those that its pretrained weights were trained with, by timm's configuration.",
)


ALIGN_MAPS = click.option(
    "--align_maps/--no_align_maps",
    help="Draw each layer's cells where they look, found by tracing and, of learned weights, measuring them; else they "
    "share the image evenly, as in the papers.",
)


def detector_config(
    command: str,
    backbone_names: tuple[str, ...],
    layers_to_extract_from: tuple[str, ...],
    backbone_weights: str,
    normalisation: str,
    recipe: tuple[str, dict[str, Any]] = ("paper", {}),
    **options: Any,
) -> "DetectorConfig":
    """The configuration that a detector's options stand for; of a recipe its name and the options that it set."""
    from experiment import DetectorConfig, parse_backbones

    backbones = parse_backbones(backbone_names, layers_to_extract_from)
    return DetectorConfig(command, backbones, backbone_weights, options, *recipe, normalisation=normalisation)


def choose_recipe(ctx: click.Context, _: click.Parameter, recipe: str) -> str:
    """Let a recipe's values be the defaults of the flags it sets."""
    if recipe != "paper":
        from simplenet.recipes import RECIPES

        ctx.default_map = RECIPES[recipe]
    return recipe


@main.command(cls=Link, short_help="SimpleNet on one or more backbones.", context_settings=SETTINGS)
@click.option(
    "--recipe",
    type=click.Choice(["paper", "stable"]),
    default="paper",
    is_eager=True,
    callback=choose_recipe,
    help="Defaults of the flags below. paper: those of the original. stable: other values of noise, discriminators, "
    "rates and score, for a last epoch that needs no picking; the run prints them. A flag that is given wins.",
)
@BACKBONE_NAMES
@LAYERS
@BACKBONE_WEIGHTS
@NORMALISATION
@ALIGN_MAPS
@click.option("--pretrain_embed_dimension", type=WIDTH, default=1024, help="Values per patch and layer.")
@click.option("--target_embed_dimension", type=WIDTH, default=1024, help="Values per patch, all layers together.")
@click.option("--patchsize", type=COUNT, default=3, help="Side of a patch's neighbourhood, in cells of a layer map.")
@click.option("--embedding_size", type=COUNT, default=1024, help="No effect; accepted because the original has it.")
@click.option("--meta_epochs", type=COUNT, default=1, help="Evaluations; each comes after --gan_epochs passes.")
@click.option("--aed_meta_epochs", type=WHOLE, default=1, help="Meta epochs that --cos_lr does not count.")
@click.option("--gan_epochs", type=COUNT, default=1, help="Passes over the training images per meta epoch.")
@click.option("--dsc_layers", type=DEPTH, default=2, help="Linear layers of the discriminator.")
@click.option("--dsc_hidden", type=WIDTH, help="Hidden width of the discriminator; unset: each block divides by 1.5.")
@click.option("--noise_std", type=Number(0), default=0.05, help="Standard deviation of the noise on features.")
@click.option("--dsc_margin", type=Number(0), default=0.8, help="Margin of the loss.")
@click.option("--dsc_lr", type=Number(0, min_open=True), default=0.0002, help="The discriminator's learning rate.")
@click.option(
    "--auto_noise",
    type=Number(0),
    default=0,
    help="Above 0: noise of this share of every feature's own standard deviation, in place of --noise_std.",
)
@click.option("--train_backbone", is_flag=True, help="Train the backbone too.")
@click.option("--cos_lr", is_flag=True, help="Cosine schedule of the discriminator's learning rate.")
@click.option(
    "--pre_proj", type=click.IntRange(0, 100), default=0, help="Linear layers of the feature adaptor; 0 is none."
)
@click.option("--proj_layer_type", type=WHOLE, default=0, help="Above 1: LeakyReLU between the adaptor's layers.")
@click.option("--mix_noise", type=DEPTH, default=1, help="Noise scales; scale k is 1.1^k times --noise_std.")
@click.option(
    "--difference_noise",
    type=SHARE,
    default=0,
    help="Share of the patches whose noise is the difference of two other patches, over sqrt(2), times --noise_std.",
)
@click.option(
    "--whiten", type=Number(0), default=0, help="Above 0: the adaptor starts as a whitening; 0.1 shrinks well."
)
@click.option("--adaptor_lr", type=Number(0, min_open=True), default=0.0001, help="The adaptor's learning rate.")
@click.option(
    "--ensemble",
    type=DEPTH,
    default=1,
    help="Adaptors and discriminators; of several, each trains on random quarters of the patches.",
)
@click.option(
    "--ema",
    type=Number(0, 1, max_open=True),
    default=0,
    help="Above 0: evaluate and keep a moving average of the weights, of this decay.",
)
@click.option(
    "--warm_up_cosine/--no_warm_up_cosine", help="Raise all learning rates over 30 steps, then lower them to zero."
)
@click.option(
    "--score_top_k", type=COUNT, default=1, help="An image's score is the mean of its k highest patch scores."
)
@click.pass_context
def net(
    ctx: click.Context,
    recipe: str,
    **options: Any,
) -> "DetectorConfig":
    """SimpleNet: a discriminator of patch features and their noisy copies."""
    del options["embedding_size"]
    of_recipe = click.core.ParameterSource.DEFAULT_MAP
    set_by_recipe = {name: value for name, value in options.items() if ctx.get_parameter_source(name) == of_recipe}
    return detector_config("net", recipe=(recipe, set_by_recipe), **options)


@main.command(cls=Link, short_help="CFA on one or more backbones, in net's place.", context_settings=SETTINGS)
@BACKBONE_NAMES
@LAYERS
@BACKBONE_WEIGHTS
@NORMALISATION
@ALIGN_MAPS
@click.option("--gamma_d", type=WIDTH, default=1, help="Patches are described by so many times fewer values.")
@click.option("--gamma_c", type=WIDTH, default=1, help="Centres of the memory bank: so many times fewer than patches.")
@click.option("--k_nearest", type=COUNT, default=3, help="Nearest centres that attract a patch, and that score it.")
@click.option("--j_hard", type=COUNT, default=3, help="Next nearest centres, which repel it.")
@click.option("--radius", type=Number(0), default=1e-5, help="Radius of the hyperspheres at the start; it is learned.")
@click.option("--alpha", type=Number(0), default=0.1, help="Margin of the repulsion.")
@click.option("--nu", type=Number(0, min_open=True), default=0.001, help="1 / nu weighs the loss.")
@click.option("--lr", type=Number(0, min_open=True), default=0.001, help="Learning rate of AdamW with amsgrad.")
@click.option("--weight_decay", type=Number(0), default=0.0005, help="Its weight decay.")
@click.option("--epochs", type=COUNT, default=30, help="Passes over the training images; each is evaluated.")
@click.option(
    "--whiten",
    type=Number(0),
    default=0,
    help="Above 0: the descriptor starts as a whitening; 0.1 shrinks well. For backbones whose features have another "
    "scale than WideResNet50's.",
)
def cfa(**options: Any) -> "DetectorConfig":
    """CFA: a descriptor that draws patches to a memory bank of normal ones, and the distance that remains."""
    return detector_config("cfa", **options)


OF_RD = {"dataset": {"batch_size": 16, "resize_mode": "square", "imagesize": 256}}  # the paper's


def options_of_rd(function: Any) -> Any:
    """The options that reverse distillation and what is built on it have in common."""
    options = (
        BACKBONE_NAMES,
        LAYERS,
        BACKBONE_WEIGHTS,
        NORMALISATION,
        ALIGN_MAPS,
        click.option(
            "--blocks", type=DEPTH, default=3, help="Residual blocks of the bottleneck and of every decoder stage."
        ),
        click.option("--lr", type=Number(0, min_open=True), default=0.005, help="Learning rate of Adam."),
        click.option(
            "--epochs",
            type=COUNT,
            default=200,
            help="Passes over the training images; each is evaluated, see --eval_every.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


@main.command(cls=Link, short_help="Reverse distillation, in net's place.", context_settings=SETTINGS, defaults=OF_RD)
@options_of_rd
def rd(**options: Any) -> "DetectorConfig":
    """Reverse distillation: a student that decodes the backbone's layers, given from fine to coarse, and errs where
    an image is not normal.

    dataset's defaults are the paper's after it: --batch_size 16 --resize_mode square --imagesize 256.
    """
    return detector_config("rd", **options)


@main.command(
    cls=Link, short_help="LogicRD, for logical anomalies, in net's place.", context_settings=SETTINGS, defaults=OF_RD
)
@options_of_rd
@click.option("--no_gse", is_flag=True, help="Without global semantics, which tell every level of the whole image.")
@click.option("--no_fcp", is_flag=True, help="Without the pathway that brings fine detail to the student.")
@click.option("--no_nii", is_flag=True, help="Without the gate that keeps anomalous detail from that pathway.")
@click.option("--no_mahalanobis", is_flag=True, help="Score images by their maps alone, not by their semantics too.")
def logicrd(**options: Any) -> "DetectorConfig":
    """LogicRD: reverse distillation that also knows the whole scene, for parts that are missing, too many or swapped.

    dataset's defaults are those behind rd: --batch_size 16 --resize_mode square --imagesize 256.
    """
    return detector_config("logicrd", **options)


OF_MULTIMODAL = {"dataset": {**OF_RD["dataset"], "batch_size": 8, "train_val_split": 0.9}}


@main.command(
    cls=Link,
    short_help="One Transformer for images and tables, in net's place.",
    context_settings=SETTINGS,
    defaults=OF_MULTIMODAL,
)
@BACKBONE_NAMES
@LAYERS
@BACKBONE_WEIGHTS
@NORMALISATION
@ALIGN_MAPS
@click.option(
    "--image_tokens",
    type=click.Choice(["backbone", "pixels"]),
    default="backbone",
    help="What an image is cut into: cells of a backbone's maps, or patches of its pixels.",
)
@click.option("--token_size", type=COUNT, default=16, help="Pixels: side of a patch.")
@click.option("--dim", type=click.IntRange(1, 4096), default=64, help="Values of a token in the Transformer.")
@click.option("--depth", type=DEPTH, default=2, help="Layers of the Transformer.")
@click.option("--heads", type=DEPTH, default=4, help="Attention heads; they divide --dim.")
@click.option("--dropout", type=Number(0, 1, max_open=True), default=0, help="Share of values dropped in training.")
@click.option(
    "--schedule",
    type=click.Choice(["alternate", "interleave"]),
    default="alternate",
    help="Batches of several data sets: in turn while each has any, or every one spread evenly over an epoch.",
)
@click.option("--lr", type=Number(0, min_open=True), default=0.001, help="Learning rate of AdamW.")
@click.option("--epochs", type=COUNT, default=60, help="Passes over the training data at most; each is evaluated.")
@click.option(
    "--patience",
    type=WHOLE,
    default=15,
    help="Stop after so many epochs without a lower loss of held-out data; 0: never. The best epoch is kept.",
)
def multimodal(
    backbone_names: tuple[str, ...], layers_to_extract_from: tuple[str, ...], **options: Any
) -> "DetectorConfig":
    """One Transformer for images and rows of tables, which learns what is hidden of normal ones and tells copies that
    were tampered with.

    \b
    dataset may stand several times: all classes and tables of them train one model.
      python main.py multimodal -b efficientnet_lite0 -le blocks.4 -le blocks.2 \\
        dataset -d mono elpv dataset --label sick table records.csv
    dataset's defaults are others after it: --batch_size 8 --resize_mode square --imagesize 256 --train_val_split 0.9;
    what is held out decides when training ends and where the threshold lies. Tables alone need no backbone.
    """
    if options["image_tokens"] == "pixels" and (backbone_names or layers_to_extract_from):
        raise UsageError("--image_tokens pixels reads no backbone: leave out -b and -le")
    if not backbone_names and not layers_to_extract_from:
        backbone_names, layers_to_extract_from = ("pixels",), ("input",)
    return detector_config(
        "multimodal",
        backbone_names=backbone_names,
        layers_to_extract_from=layers_to_extract_from,
        **options,
    )


MAX_PIXELS = click.option(
    "--max_pixels",
    type=COUNT,
    default=180_000_000,
    help="Of the largest image that is read; reading takes about 4 bytes a pixel.",
)

# What --augment sets where a flag of its own does not: small changes that leave a normal part normal; no flips.
AUGMENT = {"rotate_degrees": 5.0, "translate": 0.02, "scale": 0.05, "brightness": 0.1, "contrast": 0.1}


def random_option(name: str, kind: click.ParamType, text: str) -> Any:
    """A random change of training images: off, unless given or set by --augment."""
    default = f"0; with --augment {AUGMENT[name]:g}" if name in AUGMENT else "0"
    return click.option(f"--{name}", type=kind, show_default=default, help=text)


@main.command(cls=Link, short_help="Images or rows to train and test on.", context_settings=SETTINGS)
@click.argument("name")
@click.argument("data_path", required=False, type=click.Path(path_type=Path))
@click.option("--subdatasets", "-d", multiple=True, help="Class, repeatable; none: all classes found.")
@click.option(
    "--train_val_split",
    type=Number(0, 1, min_open=True),
    default=1,
    help="Share of the training images that is trained on; the rest is held out.",
)
@click.option("--batch_size", type=COUNT, default=2, help="Images per step.")
@click.option(
    "--num_workers",
    type=click.IntRange(0, 1000),
    default=2,
    help="Processes that read images; 0 reads in the main one.",
)
@click.option(
    "--resize",
    type=WIDTH,
    default=256,
    help="Pixels of the shorter side after resizing; not used by --resize_mode square.",
)
@click.option("--imagesize", type=WIDTH, default=224, help="Side of the square that the network sees.")
@click.option(
    "--resize_mode",
    type=click.Choice(["aspect", "square"]),
    show_default="what suits the dataset: aspect; square for those whose images are not square",
    help="aspect: resize to --resize and crop the centre. square: resize both sides to --imagesize and crop nothing.",
)
@click.option(
    "--bit_depth",
    type=IntOrAuto(8, 16),
    default="auto",
    help="Bits of the values in 16-bit files, which are scaled to 8; cameras often have 10 or 12. auto: the smallest "
    "of 8, 10, 12, 14 and 16 that holds the training images of a class.",
)
@MAX_PIXELS
@random_option("rotate_degrees", Number(0, 180), "Rotate training images by up to this angle.")
@random_option("translate", SHARE, "Shift them by up to this share of their size.")
@random_option("scale", Number(0, 1, max_open=True), "Zoom them by up to this share.")
@random_option("brightness", Number(0, 1000), "Change their brightness by up to this factor.")
@random_option("contrast", Number(0, 1000), "Change their contrast by up to this factor.")
@random_option("saturation", Number(0, 1000), "Change their saturation by up to this factor.")
@random_option("gray", SHARE, "Probability of turning them grey.")
@random_option("hflip", SHARE, "Probability of flipping them left to right.")
@random_option("vflip", SHARE, "Probability of flipping them upside down.")
@click.option(
    "--augment", is_flag=True, help="Small random rotations, shifts, zooms and changes of light; see their flags."
)
@click.option("--normal_dir", show_default="train/good", help="Dataset folder: normal images to train on.")
@click.option(
    "--normal_test_dir",
    show_default="test/good, the folder in test of --normal_dir's name, or every fifth image of --normal_dir",
    help="Dataset folder: normal images to test on.",
)
@click.option(
    "--abnormal_dir",
    multiple=True,
    show_default="every other folder in test",
    help="Dataset folder: anomalous images, one folder per defect type; repeatable.",
)
@click.option(
    "--mask_dir",
    show_default="ground_truth, or beside the images, if there are any",
    help='Dataset folder: masks of the anomalous images, NAME or NAME_mask; "" for none.',
)
@click.option(
    "--label", show_default="y of .npz and .mat", help="Dataset table: the column that is 1 for anomalous rows."
)
@click.option(
    "--test_file",
    type=click.Path(path_type=Path),
    show_default="half of the normal rows, and all anomalous ones",
    help="Dataset table: rows to test on; then all normal rows of FILE are trained on.",
)
@click.option("--split_seed", type=WHOLE, show_default="0", help="Dataset table: draws the normal rows to train on.")
@click.option("--n_train", type=IMAGES, show_default="200", help="Dataset assembly: training images of a class.")
@click.option(
    "--n_test", type=IMAGES, show_default="100", help="Dataset assembly: test images, of good and both anomalies each."
)
@click.option("--dataset_seed", type=WHOLE, show_default="0", help="Dataset assembly: seeds its images.")
def dataset(name: str, data_path: Path | None, augment: bool, **options: Any) -> "DatasetConfig":
    """Images of dataset NAME under DATA_PATH; options stand before NAME.

    \b
    mvtec       MVTec AD and data in its layout: DATA_PATH/CLASS/train/good, test/TYPE, ground_truth/TYPE
    mvtec_loco  MVTec LOCO AD; also called mvtecloco
    mpdd        MPDD, painted metal parts
    btad        beanTech, classes 01, 02 and 03
    visa        VisA as released, with split_csv/1cls.csv, or in the layout of MVTec AD
    sdd         KolektorSDD, folders kos01 to kos50; class commutator
    sdd2        KolektorSDD2, folders train and test; class surface
    mtd         magnetic tiles, folders MT_Free, MT_Crack and so on; class tile
    cifar10     CIFAR-10 as torchvision keeps it, the images of all other classes anomalous
    elpv        solar cells, classes mono and poly; without DATA_PATH those of the installed elpv-dataset package
    assembly    trays, cables and rods drawn with logical and structural anomalies, classes box, cable and rods; without
                DATA_PATH written to the cache folder first
    folder      your own images: DATA_PATH is a class or holds classes, with --normal_dir and the other folder options
    table       rows of a file with --label, for multimodal: DATA_PATH is a .csv, .tsv, .parquet, .npz or .mat

    Random changes apply to training images only.
    """
    from datasets import AssemblyOptions, FolderNames, RandomTransform, Reading, TableOptions
    from experiment import DatasetConfig

    folders = own_options("folder", FolderNames, name, options)
    assembly = own_options("assembly", AssemblyOptions, name, options)
    table = own_options("table", TableOptions, name, options)
    if assembly and data_path is not None:
        raise UsageError(f"--{next(iter(assembly))} says what to draw, but DATA_PATH is given: leave one of them out")
    reading = Reading(bit_depth=options.pop("bit_depth"), max_pixels=options.pop("max_pixels"))
    given = {field: options.pop(field) for field in RandomTransform.__dataclass_fields__}
    changes = {field: value for field, value in given.items() if value is not None}
    random = RandomTransform(**{**(AUGMENT if augment else {}), **changes})
    return DatasetConfig(
        name=name,
        data_path=data_path,
        random=random,
        reading=reading,
        folders=FolderNames(**folders),
        assembly=AssemblyOptions(**assembly),
        table=TableOptions(**table),
        **options,
    )


def own_options(owner: str, kind: type, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Take the options that only one dataset has, the fields of a dataclass, out of all; returns those given.

    Raises:
        UsageError: one is given for another dataset.
    """
    taken = {field.name: options.pop(field.name) for field in fields(kind)}
    given = {field: value for field, value in taken.items() if value not in (None, ())}
    if given and name != owner:
        raise UsageError(f"--{next(iter(given))} is an option of dataset {owner}, not of '{name}': leave it out")
    return given


@main.command(cls=Standalone, short_help="Tables and a page of finished runs.", context_settings=SETTINGS)
@click.argument("directories", metavar="RUN_DIR...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--format",
    "style",
    type=click.Choice(["table", "csv", "markdown", "latex"]),
    default="table",
    help="Of the printed table. The page is written with the default alone; the others are for other programs.",
)
@click.option(
    "--best_epoch", is_flag=True, help="Print the epoch picked on the test set, not the last. The page shows both."
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="The page. [default: RUN_DIR/report.html]")
def report(**options: Any) -> "ReportConfig":
    """Show one run or compare several: RUN_DIR is a folder with results.csv, or ablation.csv for all runs of a grid.

    \b
    Prints classes down, metrics across and, for MVTec AD, published numbers with the difference, in percent;
    writes report.html: tables, score histograms, ROC and training curves, worst images, configuration.
    """
    from experiment import ReportConfig

    return ReportConfig(**options)


DEVICE = click.option("--gpu", type=WHOLE, default=0, help="CUDA device; the CPU is used where there is none.")
WEIGHTS = click.option(
    "--backbone_weights", help="A file with the backbone's weights, where those of training have moved."
)
MODEL = click.argument("model_dir", type=click.Path(path_type=Path))


@main.command(cls=Standalone, short_help="Scores and anomaly maps of your own images.", context_settings=SETTINGS)
@MODEL
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="predictions",
    help="Folder for what is written: new, empty, or with earlier predictions alone.",
)
@click.option("--batch_size", type=IMAGES, show_default="8", help="Images scored at once.")
@click.option("--num_workers", type=click.IntRange(1, 1000), show_default="2", help="Threads that read images.")
@DEVICE
@click.option("--threshold", type=Number(), help="Image score above which is anomalous. [default: the model's]")
@click.option(
    "--map",
    type=click.Choice(["raw", "overlay", "both", "none"]),
    show_default="overlay",
    help="overlay: PNGs of image, map and both; raw: the map's values.",
)
@click.option("--raw_format", type=click.Choice(["npy", "tiff"]), show_default="npy", help="Of raw maps, float32.")
@click.option(
    "--full_size",
    is_flag=True,
    help="Maps of each image's own size; NaN where the model does not look, beyond the crop.",
)
@MAX_PIXELS
@WEIGHTS
def predict(**options: Any) -> "PredictConfig":
    """Predict images with the model in MODEL_DIR, such as results/.../models/0/mvtec_bottle.

    \b
    PATH is an image or a folder, searched with all folders below it; without any PATH, or with -, paths are read from
    standard input, one a line. Writes predictions.csv (path, score, decision, seconds, error, picture, map) and the
    pictures. An image that cannot be read is reported in its row, the others go on, and the exit code is 1.
    Nothing that predict did not write is replaced, and earlier predictions are kept beside --out unless the new ones
    say the same.
    """
    from experiment import PredictConfig

    return PredictConfig(**options)


@main.command(cls=Standalone, short_help="A trained model as one ONNX file.", context_settings=SETTINGS)
@MODEL
@click.option(
    "--format",
    "style",
    type=click.Choice(["onnx", "torch_export"]),
    default="onnx",
    help="onnx needs the packages of requirements-export.txt.",
)
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="[default: in MODEL_DIR, by its name]")
@click.option("--half", is_flag=True, help="Compute in float16; scores and maps stay float32.")
@click.option(
    "--input",
    type=click.Choice(["uint8", "float"]),
    default="uint8",
    help="Of the input [batch, H, W, 3], RGB: 0 to 255, or 0 to 1.",
)
@click.option(
    "--opset",
    type=click.IntRange(1, 999),
    show_default="the exporter's",
    help="ONNX operator set, such as 17 for an older runtime.",
)
@WEIGHTS
def export(**options: Any) -> "ExportConfig":
    """Export the model in MODEL_DIR: RGB pixels of the model's size in, image scores and anomaly maps out.

    Normalisation, backbone, patches, detector, upsampling and smoothing are inside; the batch size is free. The
    file is checked against PyTorch before it is put in its place.
    """
    from experiment import ExportConfig

    return ExportConfig(**options)


@main.result_callback()
@click.pass_context
def execute(ctx: click.Context, configs: list[Any], **run_options: Any) -> int | None:
    """Hand the configurations of the chain over."""
    import experiment

    alone = {
        experiment.ReportConfig: "report",
        experiment.PredictConfig: "predict",
        experiment.ExportConfig: "export",
    }
    for config in configs:
        if command := alone.get(type(config)):  # a link gives a list
            refuse_others(command, ctx, configs)
            return imported(command)(config)
    detectors = [config for config in configs if isinstance(config[0], experiment.DetectorConfig)]
    data = [config for config in configs if isinstance(config[0], experiment.DatasetConfig)]
    if len(detectors) != 1 or not data:
        raise UsageError(
            f"a run needs one detector and a dataset, not {len(detectors)} and {len(data)}: "
            "main.py [run options] net [options] dataset [options] NAME [DATA_PATH]"
        )
    check_grid(ctx, run_options["grid"])
    choices = list(zip(run_options.pop("grid"), detectors[0], zip(*data, strict=True), strict=True))
    imported("run")(experiment.RunConfig(**run_options), choices)
    return 0


def imported(command: str) -> Callable[..., int | None]:
    """What does the work of a command; from here on rubbish is collected again."""
    function = getattr(importlib.import_module(f"experiment.{command}"), command)
    if not gc.isenabled():  # by cli
        _leave_imports_alone()
        gc.enable()
    return function


@cache
def _leave_imports_alone() -> None:
    """Look through what was imported for rubbish no more; once, for what a command makes may be some."""
    gc.freeze()


def refuse_others(command: str, ctx: click.Context, configs: list[Any]) -> None:
    """A command that is no link of the chain stands alone: no run options before it and nothing else beside it."""
    given = [
        option.opts[0]
        for option in main.params
        if option.name and ctx.get_parameter_source(option.name) is click.core.ParameterSource.COMMANDLINE
    ]
    if given:
        raise UsageError(f"{command} takes no run options: leave out {', '.join(given)}")
    if len(configs) > 1:
        raise UsageError(f"{command} stands alone: give net and dataset in a command of their own")


def stop_on_signals() -> None:
    """End by Interrupted on Ctrl-C and SIGTERM; the processes that read images leave it to this one to end them."""
    owner = os.getpid()

    def stop(number: int, _: Any) -> None:
        if os.getpid() == owner:
            raise Interrupted(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


def cli() -> int:
    """Run the command line; a user's mistake is one line on standard error and an exit code."""
    gc.disable()  # imports make few cycles, and a quarter of their time would go into looking for them
    for stream in (sys.stdout, sys.stderr):  # names of files may hold what the terminal's encoding does not
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        stop_on_signals()
        return main(sys.argv[1:] or ["--help"], standalone_mode=False) or 0
    except click.ClickException as error:
        message, code = error.format_message(), error.exit_code
    except UsageError as error:
        message, code = str(error), 2
    except DataError as error:
        message, code = str(error), 1
    except OSError as error:
        message, code = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 1
    except Interrupted as stop:
        message, code = f"interrupted; {stop.advice}", 128 + stop.number
    finally:
        gc.enable()
    click.echo(f"Error: {' '.join(readable(message).split())}", err=True)
    return code


if __name__ == "__main__":
    sys.exit(cli())
