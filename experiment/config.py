"""What the command line says of a run and of what is done with one: plain records, of which config.json is a copy."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, replace
from pathlib import Path
from typing import Literal

from errors import UsageError
from files import readable
from options import option

MODELS = "models"  # the folder in a run's that its models are in
FOLDER = re.compile(r"\w[\w.+=,-]{0,99}")  # of one of several detectors
WRITTEN = (".csv", ".json", ".html")  # endings of what is written beside those
LOCAL = "local"  # --ray without an address
LARGEST_SEED = 2**32 - 1  # of NumPy and scikit-learn; PyTorch takes more


def check_seed(flag: str, seed: int) -> None:
    """See that all that a seed is given to can take it.

    Raises:
        UsageError: it is too large.
    """
    if seed > LARGEST_SEED:
        raise UsageError(f"{flag} {seed} is too large: expected 0 to {LARGEST_SEED}")


def check_names(detectors: Sequence[str]) -> None:
    """See that the detectors of a command line are told apart by names that folders can have.

    Raises:
        UsageError: two have one name, or one has none such.
    """
    folded = [name.casefold() for name in detectors]  # as some file systems compare them
    for name in detectors:
        if not FOLDER.fullmatch(name) or name == MODELS or Path(name).suffix in WRITTEN:
            raise UsageError(
                f"--as '{name}': expected the name of a folder, of letters, digits and _ . + = , - and not '{MODELS}' "
                f"or with the ending {', '.join(WRITTEN[:-1])} or {WRITTEN[-1]}"
            )
        if folded.count(name.casefold()) > 1:
            raise UsageError(f"two detectors are called '{name}': give one another name, such as --as {name}_2")


@dataclass(frozen=True)
class RunConfig:
    """Where results go, the seeds, and how the machine is used.

    Attributes:
        grid: what --grid chose for this run, by flag, and `point` the name of its folder; else empty.
    """

    results_path: Path = option(Path("results"), "Folder for results.", changes_results=False)
    gpu: tuple[int, ...] = option(
        (0,), "CUDA device, repeatable; the CPU where there is none.", at_least=0, changes_results=False
    )
    seeds: tuple[int, ...] = option(
        (0,),
        "Seeds weights, noise and image order. Repeatable: results.csv holds mean and standard deviation.",
        "--seed",
        at_least=0,
    )
    log_group: str = option(
        "group", "Results go to RESULTS_PATH/LOG_PROJECT/LOG_GROUP/RUN_NAME.", changes_results=False
    )
    log_project: str = option("project", "See --log_group.", changes_results=False)
    run_name: str = option("test", "See --log_group.", changes_results=False)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option(
        "auto",
        "Of convolutions, features and matrix products. auto: bf16 where the device computes it natively, else fp32.",
        changes_results=False,  # what it stands for on this device is compared
    )
    feature_bank: Literal["auto", "device", "host", "disk", "off"] = option(
        "auto",
        "Where the features of a frozen backbone are kept, so that each image is embedded once. auto: the first with "
        "room; off: embed in every pass.",
        changes_results=False,
    )
    eval_every: int = option(1, "Evaluate after every N meta epochs, and after the last.", at_least=1)
    test: bool = option(
        False,
        "Train nothing: evaluate the models of the same command line without --test.",
        changes_results=False,
    )
    on_error: Literal["stop", "skip"] = option(
        "stop",
        "When a class has bad data, or memory or disk run out. skip: record why in results.csv and failed.json, go on "
        "with the others, and exit with 1.",
        changes_results=False,
    )
    overwrite: bool = option(
        False,
        "Start anew: the run that is there under this name is moved aside. Without it, the same command continues it.",
        changes_results=False,
    )
    jobs: int | None = option(
        None,
        "Jobs at once on the CPUs, each with its share of the threads. Several need Ray.",
        at_least=1,
        shown="1; with --ray one per CPU",
        changes_results=False,
    )
    jobs_per_gpu: int = option(1, "Jobs at once on each --gpu. Several need Ray.", at_least=1, changes_results=False)
    ray: str | None = option(
        None,
        "Run the jobs by Ray: on the cluster at ADDRESS, such as auto or HOST:6379, else on this machine alone.",
        metavar="[ADDRESS]",
        without_value=LOCAL,
        changes_results=False,
    )
    save_segmentation_images: bool = option(False, "Draw every test image with its mask and anomaly map.")
    threshold_quantile: float = option(
        0.995,
        "Share of held-out normal images (see --train_val_split; else of the training images) that stays at or below "
        "the threshold; of their pixels, below that of pixels.",
        at_least=0,
        at_most=1,
    )
    calibrate: int | None = option(
        None,
        "Count false alarms of a threshold of training images by cross-validation: so many further models, each "
        "trained on all of these but one part, decide on that part.",
        at_least=2,
        at_most=100,
    )
    grid: dict[str, str] = field(default_factory=dict)
    point: str = ""

    def __post_init__(self) -> None:
        for flag in ("log_project", "log_group", "run_name"):
            _check_folder(flag, getattr(self, flag))
        if readable(str(self.family)) != str(self.family):
            raise UsageError(
                f"'{readable(str(self.family))}' is not UTF-8: choose another --results_path and --run_name"
            )
        for seed in self.seeds:
            check_seed("--seed", seed)
        if len(set(self.seeds)) < len(self.seeds):
            raise UsageError(f"a --seed is given twice in {', '.join(map(str, self.seeds))}")

    @property
    def family(self) -> Path:
        """The folder of the command line's runs."""
        return self.results_path / self.log_project / self.log_group / self.run_name

    @property
    def directory(self) -> Path:
        """The folder of this run."""
        return self.family / self.point

    def of_detector(self, name: str) -> "RunConfig":
        """The configuration with which one of several detectors would be run alone in its folder; "" is without."""
        return replace(self, run_name=f"{self.run_name}/{name}") if name else self


def _check_folder(flag: str, name: str) -> None:
    """Refuse what names no folder below --results_path, or one that another run keeps its models in.

    Raises:
        UsageError: it does.
    """
    parts = name.split("/")
    if not {"", ".", ".."}.isdisjoint(parts) or MODELS in parts or "\0" in name:
        raise UsageError(
            f"--{flag} '{name}': expected the name of a folder, or several as in sweep/first, none of them empty, "
            f"'.', '..' or '{MODELS}'"
        )


@dataclass(frozen=True)
class ReportConfig:
    """Show one run or compare several: RUN_DIR is a folder with results.csv, with ablation.csv for all runs of a grid,
    or with comparison.csv for those of several detectors.

    \b
    Prints classes down, metrics across and, for MVTec AD, published numbers with the difference, in percent;
    writes report.html: tables, score histograms, ROC and training curves, worst images, configuration.
    """

    directories: tuple[Path, ...] = option(MISSING, "Of runs.", metavar="RUN_DIR...", argument=True)
    style: Literal["table", "csv", "markdown", "latex"] = option(
        "table",
        "Of the printed table. The page is written with the default alone; the others are for other programs.",
        "--format",
    )
    best_epoch: bool = option(False, "Print the epoch picked on the test set, not the last. The page shows both.")
    compare: bool = option(
        False,
        "Say which run is better, by how much, and whether that is more than chance: 95 % intervals of all metrics, "
        "DeLong's test of every two runs and, over several classes, Wilcoxon's and mean ranks.",
    )
    out: Path | None = option(None, "The page.", shown="RUN_DIR/report.html", is_file=True)


@dataclass(frozen=True)
class FigureConfig:
    """Draw a figure for a paper of finished runs, RUN_DIR as of report.

    \b
    Rows are test images, columns the image, its mask and the anomaly map of every run; or, with --ranks or --cost, a
    diagram of numbers. Text stays text, and widths are those of one or two columns of a page.
    """

    directories: tuple[Path, ...] = option(MISSING, "Of runs.", metavar="RUN_DIR...", argument=True)
    out: Path = option(Path("figure.pdf"), "The file, a .pdf, .svg or .png.", is_file=True)
    width: Literal["one", "two"] = option("two", "Columns of a page that it is as wide as: 85 or 175 mm.")
    images: str = option(
        "worst",
        "Anomalous images that all runs together score lowest, best: highest, random, or a file of names as in "
        "predictions.csv, one a line.",
        metavar="worst|best|random|FILE",
    )
    rows: int = option(4, "Images, of every class in turn.", at_least=1, at_most=100)
    subdatasets: tuple[str, ...] = option((), "Class, such as mvtec_bottle, repeatable; none: all.", "--class", "-d")
    seed: int = option(0, "Of --images random.", at_least=0, at_most=LARGEST_SEED)
    ranks: bool = option(False, "Mean ranks over the classes, with the critical difference of Nemenyi's test.")
    cost: bool = option(False, "Image AUROC against milliseconds per image, by what the runs cost.")
    gpu: int = option(0, "CUDA device; the CPU is used where there is none.", at_least=0)


@dataclass(frozen=True)
class JobName:
    """One job of a run: which class, which of the backbones, which seed, and what it is called.

    Attributes:
        dataset: the index of its dataset on the command line.
        class_name: the class within the dataset.
        backbone: its index on the command line.
        seed: one of the run's.
        title: the row's name in results.csv: "mvtec_bottle" or, among several backbones, "mvtec_bottle (resnet18)".
        folder: of the model, below the run's.
    """

    dataset: int
    class_name: str
    backbone: int
    seed: int
    title: str
    folder: str


def job_names(
    datasets: Sequence[tuple[str, Iterable[str]]], backbones: Sequence[str], seeds: Sequence[int]
) -> list[JobName]:
    """All jobs of a run in the order they are run, of datasets and their classes; backbones are given by labels."""
    classes = [(i, dataset, name) for i, (dataset, names) in enumerate(datasets) for name in names]
    jobs = []
    for i, dataset, class_name in classes:
        for j, label in enumerate(backbones):
            for seed in seeds:
                title = f"{dataset}_{class_name}"
                folder = f"{MODELS}/{j}/{title}" + (f"_seed_{seed}" if len(seeds) > 1 else "")
                shown = f"{title} ({label})" if len(backbones) > 1 else title
                jobs.append(JobName(i, class_name, j, seed, shown, folder))
    return jobs


def point_names(grids: Sequence[Mapping[str, str]]) -> list[str]:
    """A folder name for each choice of a grid, such as "dsc_hidden=512,noise_std=0.02"; empty where none is made."""
    names = [re.sub(r"[^\w.+=,-]", "_", ",".join(f"{flag}={value}" for flag, value in grid.items())) for grid in grids]
    if len(set(names)) < len(names) or any(len(name) > 200 for name in names):
        return [f"point-{i}" for i in range(len(grids))]
    return names
