"""Where a run's detector fails: by defect type and by size; SegF1, mAD and PRO up to 0.05; and where its images are."""

import hashlib
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import SMALL_DATA, make_mvtec, small
from PIL import Image

import main
import metrics
from datasets.regions import region_labels
from errors import DataError
from experiment.record.data import data_of, root_of, samples_of
from experiment.record.read import read_run
from experiment.show.failures import failures
from methods import load


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a class with two defect types, one of them of two sizes, on maps of full size."""
    where = tmp_path_factory.mktemp("failures")
    root = make_mvtec(where / "data" / "mvtec", ["bolt"], size=32, train=4, test=4)
    for part, colour in (("test", (90, 100, 110)), ("ground_truth", 255)):
        old = root / "bolt" / part / "crack"
        shutil.copytree(old, root / "bolt" / part / "dent")
        for i, path in enumerate(sorted((root / "bolt" / part / "dent").iterdir())):
            pixels = np.array(Image.open(path))
            pixels[4 : 6 + i, 20:22] = colour
            Image.fromarray(pixels).save(path)
    words = ["--results_path", where / "results", "--precision", "fp32", *small("patchcore"), "dataset", *SMALL_DATA]
    words += ["--resize", "32", "mvtec", where / "data"]
    main.main([str(word) for word in words], standalone_mode=False)
    return where / "results/project/group/test"


def test_columns_are_plain_computations_of_maps_and_masks(run):
    record = read_run(run)
    (job,) = record.jobs
    row, model = record.results_of[job].row, load(run / job.folder)
    samples = list(samples_of(record, job).values())
    maps = model.predict([str(sample.image_path) for sample in samples]).maps.numpy()
    masks = [np.array(Image.open(s.mask_paths[0])) > 0 if s.mask_paths else np.zeros((32, 32), bool) for s in samples]
    masks, called = np.stack(masks), maps > model.thresholds.pixel
    hits = (masks & called).sum()
    assert 0 < hits < called.sum()
    assert row["seg_f1"] == pytest.approx(2 * hits / (masks.sum() + called.sum()))
    regions = region_labels(samples, data_of(record, job).test_transform)
    assert row["pro_0.05"] == pytest.approx(metrics.pro(masks, maps, 0.05, regions))
    seven = ["image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "pixel_f1_max", "pro"]
    assert row["mad"] == pytest.approx(np.mean([row[name] for name in seven]))
    results = pd.read_csv(run / "results.csv")
    assert results["seg_f1"].tolist() == pytest.approx([row["seg_f1"]] * 2, abs=1e-6)


def test_types_and_sizes_stand_among_all_normal_images(run):
    record = read_run(run)
    (job,) = record.jobs
    table = failures(record, job)
    rows = {row[0]: dict(zip(table.heads, row, strict=True)) for row in table.rows}
    predictions, pixels = record.predictions(job), record.pixels(job, 12)
    aurocs = []
    for kind in ("crack", "dent"):
        own = predictions[predictions["defect_type"].isin([kind, "good"])]
        aurocs.append(metrics.auroc(own["label"], own["score"]))
        assert rows[kind]["image AUROC"] == f"{100 * aurocs[-1]:.1f}" and rows[kind]["images"] == "4"
        found = own.loc[own["label"] == 1, "decision"].mean()
        assert rows[kind]["found at the threshold"] == f"{100 * found:.1f}"
        weights = predictions["defect_type"].isin([kind, "good"])
        assert rows[kind]["PRO"] == f"{100 * pixels.ranked(weights).overlap_area(0.3):.1f}"
    names = list(rows)
    assert names[:2] == [kind for _, kind in sorted(zip(aurocs, ("crack", "dent"), strict=True))]
    assert [name.split(":")[0] for name in names[2:]] == ["smallest third", "middle third", "largest third"]
    assert [rows[name]["images"] for name in names[2:]] == ["3", "3", "2"]
    share = pixels.defective_share[predictions["label"] == 1]
    assert names[2].endswith(f": {100 * share.min():.2g} to {100 * np.sort(share)[2]:.2g} % of the image")


def test_the_page_shows_them_and_leads_to_the_files(run, tmp_path):
    """A run that outlives its data shows its pictures all the same, and so does one of fewer pictures."""
    copy = shutil.copytree(run, tmp_path / "run")
    main.main(["report", str(copy)], standalone_mode=False)
    html = (copy / "report.html").read_text()
    assert "Where it fails, percent" in html and "largest third" in html
    (first, *_) = re.findall(r'<a href="file://([^"]+)">bolt/test/', html)
    assert Image.open(first).size == (32, 32)
    assert html.count("<figcaption><a") == 9  # five misses, and all normal images

    config = json.loads((copy / "config.json").read_text())
    config["dataset"]["data_path"] = str(tmp_path / "gone")
    (copy / "config.json").write_text(json.dumps(config))
    path = next(copy.rglob("job.json"))
    content = json.loads(path.read_text())
    content["sha256"] = {name: own for name, own in content["sha256"].items() if "00000" not in name}
    path.write_text(json.dumps(content))
    main.main(["report", str(copy)], standalone_mode=False)
    html = (copy / "report.html").read_text()
    assert "file://" not in html and html.count("<figcaption>bolt/test/") in (8, 9)
    record = read_run(copy)
    with pytest.raises(DataError, match=r"the data of '.*run' are not there any more: '.*gone'"):
        root_of(record, record.jobs[0])


def test_no_table_without_both_labels(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    record = read_run(copy)
    (job,) = record.jobs
    path = copy / job.folder / "predictions.csv"
    pd.read_csv(path).query("label == 1").to_csv(path, index=False)
    record.results_of[job].sha256["predictions.csv"] = hashlib.sha256(path.read_bytes()).hexdigest()
    assert failures(record, job) is None
