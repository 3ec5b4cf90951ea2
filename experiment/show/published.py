"""Numbers from papers, and how they came about: published.csv."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from late import pandas as pd

LAST_EPOCH, BEST_EPOCH = "last epoch", "best epoch on the test set"
# What a number is of, and how a table's head says it. Of a method without training it is of the last epoch.
PROTOCOLS = {
    LAST_EPOCH: "last epoch",
    BEST_EPOCH: "best epoch",
    "settings per class on the test set": "settings per class",
    "unknown": "protocol unknown",
}
MEAN = "mean"  # a class: what a paper prints of all
COMPARED = ("image_auroc", "pixel_auroc", "pro")


class PublishedMean(NamedTuple):
    """What a paper says of some classes together, in percent; NaN where it says nothing."""

    dataset: str
    paper: str
    protocol: str
    values: dict[str, float]


@cache
def published() -> pd.DataFrame:
    """Numbers from papers in percent: published.csv.

    paper, detector (the command whose paper it is; empty of others), source, dataset, class (MEAN: of all), protocol
    (one of PROTOCOLS), and the metrics of COMPARED.
    """
    return pd.read_csv(Path(__file__).with_name("published.csv"), dtype={"class": str}, keep_default_na=True)


def by_class(detectors: Sequence[str]) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Of the papers of some detectors: the paper, the protocol, and its numbers by class, such as "mvtec_bottle"."""
    known = published()
    own = known[known["detector"].isin(detectors) & (known["class"] != MEAN)]
    for (paper, protocol), rows in own.groupby(["paper", "protocol"], sort=False):
        yield paper, protocol, rows.set_index(rows["dataset"] + "_" + rows["class"])[list(COMPARED)]


def class_of(title: str) -> str:
    """Of a row of results.csv such as "mvtec_bottle (resnet18)" the dataset and the class."""
    return title.partition(" (")[0]


def means(titles: Sequence[str]) -> list[PublishedMean]:
    """What papers say of the classes that rows of results.csv name; of all classes of a dataset, what they print.

    A paper that lacks one of them is left out.
    """
    found, keys = [], {class_of(title) for title in titles}
    for dataset, rows in published().groupby("dataset", sort=False):
        known = [name for name in rows["class"].unique() if name != MEAN]
        own = [name for name in known if f"{dataset}_{name}" in keys]
        for (paper, protocol), theirs in rows.groupby(["paper", "protocol"], sort=False):
            numbers = theirs.set_index("class")[list(COMPARED)]
            if own and len(own) == len(known) and MEAN in numbers.index:
                values = numbers.loc[MEAN]
            elif own and numbers.index.isin(own).sum() == len(own):
                values = numbers.loc[own].mean(skipna=False)
            else:
                continue
            found.append(PublishedMean(str(dataset), str(paper), str(protocol), values.to_dict()))
    return found
