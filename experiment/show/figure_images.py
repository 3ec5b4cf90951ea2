"""A figure of test images: in rows an image, its mask and the anomaly map of every detector."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from datasets import Sample, read_image
from datasets.regions import read_masks
from detection.description import EACH, read_description
from detection.precision import precision_name
from errors import DataError, UsageError
from experiment.config import FigureConfig
from experiment.machine.device import choose_device, choose_precision
from experiment.record.data import data_of, samples_of
from experiment.record.read import RunRecord
from experiment.show.comparison import Contender, check_images, contenders_of
from experiment.show.figure_charts import INCHES
from late import pandas as pd
from methods import DETECTORS, load

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CHOICES = ("worst", "best", "random")
LONGEST = 480  # pixels of a drawn image: as many as print shows
COLOURS = "viridis"
SCALE = "from the lowest to the highest pixel score of a detector on the class's test images"
OUTLINE = "; line: the mask"
GAP, BAR, EDGE = 0.025, 0.3, 0.05  # inches
HEAD, SMALL, SMALLEST = 7.0, 6.0, 4.5  # points: of letters over columns, beside rows, and where a word is long
LEADING = 1.2 / 72  # inches a line, by points


@dataclass(frozen=True)
class DrawnMap:
    """An anomaly map in [0, 1] [h, w], and where on the image it lies: left, top, right and bottom in its pixels."""

    values: NDArray[np.float32]
    window: tuple[int, int, int, int]


@dataclass(frozen=True)
class Row:
    """A test image: what is said of it, its pixels, size and masks, and the map of every detector."""

    label: str
    image: Image.Image
    size: tuple[int, int]
    masks: list[NDArray[np.bool_]]
    maps: list[DrawnMap]


def draw_images(config: FigureConfig, records: Sequence[RunRecord]) -> Figure:
    """The figure of some test images of runs.

    Raises:
        UsageError: runs without maps or of tables, classes that not all have, or images that are not theirs.
        DataError: data or models that are not there any more, or cannot be read.
    """
    contenders = contenders_of(records)
    shared = [name for name in contenders[0].jobs if all(name in one.jobs for one in contenders)]
    if unknown := [name for name in config.subdatasets if name not in shared]:
        raise UsageError(f"-d {unknown[0]}: expected a class that all runs have, such as {', '.join(shared) or 'none'}")
    classes = [name for name in shared if not config.subdatasets or name in config.subdatasets]
    if not classes:
        raise UsageError("figure: no class is in all runs")
    _refuse_without_maps(contenders, classes)
    chosen = _chosen(config, {name: _ranked(contenders, name) for name in classes})
    rows = list(_rows(contenders, chosen, config.gpu))
    return _drawn(rows, [one.label for one in contenders], INCHES[config.width])


def _refuse_without_maps(contenders: Sequence[Contender], classes: Sequence[str]) -> None:
    for one in contenders:
        for name in classes:
            description = read_description(one.record.directory / one.jobs[name][0].folder, DETECTORS)
            if description.table is not None:
                raise UsageError(f"figure draws images, and {name} of {one.label} is a table: leave it out")
            if not description.draws_maps:
                raise UsageError(
                    f"figure: {one.label} has no anomaly maps, for {description.detector} draws none: leave it out, or "
                    "draw --ranks or --cost"
                )


def _ranked(contenders: Sequence[Contender], name: str) -> pd.DataFrame:
    """The test images of a class: label, defect_type, and as `rank` the share that scores lower, over all detectors."""
    first, ranks = None, []
    for one in contenders:
        table = one.record.predictions(one.jobs[name][0])
        first = (one.label, table) if first is None else first
        check_images(name, first, (one.label, table))
        ranks.append(table.set_index("image")["score"].rank(pct=True))
    found = first[1].set_index("image")[["label", "defect_type"]]
    return found.assign(rank=sum(ranks) / len(ranks))


def _chosen(config: FigureConfig, tables: dict[str, pd.DataFrame]) -> list[tuple[str, str]]:
    """The class and the name of every image to draw: of each class one after another, or those that a file names."""
    if config.images not in CHOICES:
        return _named(Path(config.images), tables)
    generator, lists = np.random.default_rng(config.seed), []
    for name, table in tables.items():
        own = table[table["label"] == 1]
        if config.images == "random":
            order = own.index[generator.permutation(len(own))]
        else:
            order = own.sort_values("rank", ascending=config.images == "worst", kind="stable").index
        lists.append([(name, image) for image in order])
    found = [one for one in chain.from_iterable(zip_longest(*lists)) if one is not None]
    if not found:
        raise UsageError(f"--images {config.images} is of anomalous images, of which the runs were tested on none")
    return sorted(islice(found, config.rows), key=lambda one: list(tables).index(one[0]))


def _named(path: Path, tables: dict[str, pd.DataFrame]) -> list[tuple[str, str]]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--images {path}: expected {', '.join(CHOICES)}, or a file of names as in predictions.csv, one a line"
        ) from error
    found = []
    for line in lines:
        own = next((name for name, table in tables.items() if line in table.index), None)
        if own is None:
            raise UsageError(f"--images {path}: '{line}' is no test image of {', '.join(tables)}; see predictions.csv")
        found.append((own, line))
    if not found:
        raise UsageError(f"--images {path} names no image")
    return found


def _rows(contenders: Sequence[Contender], chosen: Sequence[tuple[str, str]], gpu: int) -> Iterator[Row]:
    device, first, computing = choose_device((gpu,)), contenders[0], None
    samples: dict[tuple[str, str], Sample] = {}
    for name in dict.fromkeys(name for name, _ in chosen):
        own = samples_of(first.record, first.jobs[name][0])
        for image in (image for owner, image in chosen if owner == name):
            if image not in own:
                raise DataError(f"the data of '{first.record.directory}' have no test image '{image}' any more")
            samples[name, image] = own[image]
    maps: dict[tuple[str, str], list[DrawnMap]] = {one: [] for one in chosen}
    pictures = {one: _picture(first, samples[one], one[0]) for one in chosen}
    for contender in contenders:
        for name in dict.fromkeys(name for name, _ in chosen):
            model = load(contender.record.directory / contender.jobs[name][0].folder, device)
            if model.description.dtype != computing:
                computing = choose_precision(precision_name(model.description.dtype), device)  # TF32 as in training
            own = [one for one in dict.fromkeys(chosen) if one[0] == name]
            given = [samples[one].image_path if samples[one].pixels is None else samples[one].pixels for one in own]
            low, high = model.description.map_range
            masks = [samples[one].interest_path for one in own] if model.description.mask_of_interest == EACH else None
            for one, found in zip(own, model.predict(given, masks).maps.cpu().numpy(), strict=True):
                window = model.transform.window(*pictures[one].size)
                maps[one].append(DrawnMap(np.clip((found - low) / max(high - low, 1e-12), 0, 1), window))
    for one in chosen:
        picture, sample = pictures[one].copy(), samples[one]
        picture.thumbnail((LONGEST, LONGEST))
        label = f"{one[0].partition('_')[2]}, {sample.defect_type}".replace("_", " ")
        yield Row(label, picture, pictures[one].size, read_masks(sample), maps[one])


def _picture(contender: Contender, sample: Sample, name: str) -> Image.Image:
    if sample.pixels is not None:
        return Image.fromarray(sample.pixels)
    return read_image(sample.image_path, data_of(contender.record, contender.jobs[name][0]).reading)


def _drawn(rows: Sequence[Row], labels: Sequence[str], width: float) -> Figure:
    """Cells of one width, every row as high as its image; what a network does not see of an image stays white."""
    from matplotlib.figure import Figure

    has_masks = any(row.masks for row in rows)
    heads = ["image", *(["mask"] if has_masks else []), *labels]
    shapes = [min(row.size[1] / row.size[0], 2.0) for row in rows]
    margin, cell, beside = EDGE, 0.0, [""] * len(rows)
    for _ in range(2):  # the lines beside a row make the margin, which makes the cells, which make the lines
        cell = (width - margin) / len(heads) - GAP
        beside = [_wrapped(row.label, cell * shape, SMALL) for row, shape in zip(rows, shapes, strict=True)]
        margin = EDGE + SMALL * LEADING * max(label.count("\n") + 1 for label in beside)
    words = max((word for head in heads for word in head.split()), key=lambda word: _inches(word, HEAD))
    size = max(SMALLEST, min(HEAD, HEAD * cell / _inches(words, HEAD)))
    heads = [_wrapped(head, cell, size) for head in heads]
    heights = [cell * shape for shape in shapes]
    top = EDGE + size * LEADING * max(head.count("\n") + 1 for head in heads)
    height = top + sum(heights) + GAP * len(rows) + BAR
    drawn, y = Figure(figsize=(width, height)), height - top
    for i, (row, own) in enumerate(zip(rows, heights, strict=True)):
        y -= own
        for j in range(len(heads)):
            x = margin + j * (cell + GAP)
            axes = drawn.add_axes((x / width, y / height, cell / width, own / height))
            axes.set(xticks=[], yticks=[], xlim=(0, row.size[0]), ylim=(row.size[1], 0))
            axes.spines[:].set(visible=True, color="#9aa3af", linewidth=0.4)
            _fill(axes, row, j, has_masks)
            if i == 0:
                axes.set_title(heads[j], fontsize=size, pad=2, linespacing=1.0)
            if j == 0:
                axes.set_ylabel(beside[i], fontsize=SMALL, labelpad=2, linespacing=1.0)
        y -= GAP
    _add_scale(drawn, width, height, margin, SCALE + OUTLINE * has_masks)
    return drawn


def _inches(text: str, size: float) -> float:
    """How wide a line of text is in letters of so many points."""
    from matplotlib.textpath import TextPath

    return float(TextPath((0, 0), text, size=size).get_extents().width) / 72


def _wrapped(text: str, width: float, size: float) -> str:
    """A text in lines that are not wider than so many inches, broken between words where these are short enough."""
    letter = _inches(text, size) / len(text)
    lines = textwrap.wrap(text, max(4, int(width / letter)))
    return "\n".join(lines)


def _fill(axes: Axes, row: Row, column: int, has_masks: bool) -> None:
    width, height = row.size
    whole = (0, width, height, 0)
    if column == 0:
        axes.imshow(row.image, extent=whole, aspect="auto")
    elif column == 1 and has_masks:
        axes.set_facecolor("black")
        for mask in row.masks:
            axes.imshow(np.where(mask, 1.0, np.nan), extent=whole, aspect="auto", cmap="gray", vmin=0, vmax=1)
    else:
        own = row.maps[column - 1 - has_masks]
        left, top, right, bottom = own.window
        extent = (left, right, bottom, top)
        axes.imshow(own.values, extent=extent, aspect="auto", cmap=COLOURS, vmin=0, vmax=1)
        for mask in row.masks:
            axes.contour(mask, levels=[0.5], colors="white", linewidths=0.5, extent=whole, origin="upper")
    axes.set(xlim=(0, width), ylim=(height, 0))


def _add_scale(drawn: Figure, width: float, height: float, margin: float, said: str) -> None:
    """The colours of the maps, and what they mean."""
    length = min(1.1, 0.3 * width)
    bar = drawn.add_axes((margin / width, 0.115 / height, length / width, 0.07 / height))
    bar.imshow(np.linspace(0, 1, 256)[None], aspect="auto", cmap=COLOURS, extent=(0, 1, 0, 1))
    bar.set(xticks=[], yticks=[])
    bar.spines[:].set_visible(False)
    left = margin + length + 0.08
    text = _wrapped(said, width - left, SMALL)
    drawn.text(left / width, 0.15 / height, text, va="center", fontsize=SMALL, linespacing=1.0)
