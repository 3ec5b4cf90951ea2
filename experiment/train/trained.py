"""--test: a model that an earlier run trained, checked against the command line and evaluated again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

from detection import Detector
from detection.checkpoint import restore
from detection.description import DESCRIPTION, Description, read_description
from detection.precision import PRECISIONS
from errors import UsageError
from experiment.config import RunConfig
from experiment.machine.allocator import kept_blocks
from experiment.machine.memory import one_line_when_full
from experiment.machine.progress import progress
from experiment.plan.job import Job, label_of
from experiment.record.provenance import flatten
from experiment.record.results import JobResult, read_result, write_result
from experiment.train.banks import ClassBanks
from experiment.train.embeddings import ClassFeatures
from experiment.train.evaluation import evaluate
from experiment.train.finish import outside_of, row_of, write_predictions
from methods import DETECTORS


def check_trained(job: Job, run: RunConfig) -> Description:
    """The description of the model in a job's folder, which must be that of the same command line.

    Raises:
        UsageError: no model there, or one of other options; what was found is listed.
    """
    if not (job.folder / DESCRIPTION).is_file():
        models = sorted(path.parent.name for path in job.folder.parent.glob(f"*/{DESCRIPTION}"))
        found = f"found {', '.join(models)}" if models else "found no model at all"
        raise UsageError(f"--test: no model of '{job.name.title}' in '{job.folder}': {found}; train it without --test")
    description = read_description(job.folder, DETECTORS)
    wanted = {**job.identity, "threshold_quantile": run.threshold_quantile}
    trained = {name: getattr(description, name, description.thresholds.quantile) for name in wanted}
    if run.precision != "auto":
        wanted["precision"] = str(PRECISIONS[run.precision]).removeprefix("torch.")
        trained["precision"] = description.precision
    theirs, ours = flatten(trained), flatten(json.loads(json.dumps(wanted, default=str)))
    if all(Path(both["backbone.weights"]).suffix for both in (theirs, ours)):  # files, whose content restore compares
        ours["backbone.weights"] = theirs["backbone.weights"]
    differing = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
    if differing:
        shown = "; ".join(
            f"{name} {_short(theirs.get(name, 'unset'))}, not {_short(ours.get(name, 'unset'))}" for name in differing
        )
        raise UsageError(f"--test: the model in '{job.folder}' was trained with {shown}")
    return description


def _short(value: str) -> str:
    return value if len(value) <= 80 else f"{value[:77]}..."


def test_trained(job: Job, detector: Detector, run: RunConfig, banks: ClassBanks | None) -> JobResult:
    """Evaluate what an earlier run trained, and write its predictions and pictures again.

    Args:
        job: whose folder holds the model.
        detector: built as the model was, for this job's part of it.
        run: whether all test images are drawn.
        banks: the class's embeddings; None embeds the images.

    Raises:
        DataError: an image, a mask or a model that cannot be used.
    """
    description = read_description(job.folder, DETECTORS)
    restore(detector, job.folder, description)
    own = ClassFeatures(job, detector, banks)
    with one_line_when_full(), kept_blocks(), progress(label_of([job]), total=len(own.test)) as bar:
        evaluation = evaluate(**own.test_set, bar=bar)
    shutil.rmtree(job.folder / "examples", ignore_errors=True)  # other images may be the worst of other test images
    written = write_predictions(job.folder, job, own.test, evaluation, description, run.save_segmentation_images)
    result = replace(
        read_result(job.folder, job.name),
        row=row_of(job, evaluation, description),
        outside=outside_of(own.test, description.thresholds),
    )
    return write_result(job.folder, result, written)
