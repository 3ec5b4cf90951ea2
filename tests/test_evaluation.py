"""What is measured after a meta epoch, above all of MVTec LOCO."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import trees
from conftest import SMALL_DATA, SMALL_NET
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from tqdm import tqdm

import main
import metrics
from datasets import Defect, Sample
from detection import Prediction
from experiment.train.evaluation import evaluate
from metrics import DECISION_METRICS, LOCO_METRICS, METRICS, decision_metrics

NO_BAR = tqdm(disable=True)


def test_loco_metrics_take_each_kind_among_all_normal_images():
    rng = np.random.default_rng(0)
    kinds = ["good"] * 4 + ["logical_anomalies"] * 3 + ["structural_anomalies"] * 3
    samples = [Sample(Path(f"{i}"), (Path("m"),) * (k != "good"), k != "good", "box", k) for i, k in enumerate(kinds)]
    maps = rng.normal(size=(10, 24, 24)).astype(np.float32)
    masks = np.zeros(maps.shape, bool)
    defects = []
    for i in range(4, 10):
        masks[i, 3 + i : 9 + i, 2 : 2 + i] = True
        maps[i][masks[i]] += 1
        defects.append(Defect(i, masks[i], 10.0 + i))
    batches = [(Prediction(torch.from_numpy(m).amax((1, 2)), torch.from_numpy(m)), masks[:5]) for m in (maps[:5],)]
    batches.append((Prediction(torch.from_numpy(maps[5:]).amax((1, 2)), torch.from_numpy(maps[5:])), masks[5:]))
    found = evaluate(batches, samples, defects, NO_BAR)
    assert list(found.metrics) == [*METRICS, *LOCO_METRICS]
    assert found.map_range == (maps.min(), maps.max())
    scores = maps.max((1, 2))
    for kind, own in (("logical", [0, 1, 2, 3, 4, 5, 6]), ("structural", [0, 1, 2, 3, 7, 8, 9])):
        assert found.metrics[f"image_auroc_{kind}"] == metrics.auroc([i >= 4 for i in own], scores[own])
        moved = [(own.index(i), mask, area) for i, mask, area in defects if i in own]
        for limit in (0.05, 0.3):
            assert found.metrics[f"auspro_{limit}_{kind}"] == metrics.spro(moved, maps[own], limit)
    for name in ("image_auroc", "auspro_0.05", "auspro_0.3"):
        both = [found.metrics[f"{name}_{kind}"] for kind in ("logical", "structural")]
        assert found.metrics[f"{name}_mean"] == pytest.approx(np.mean(both))


def test_metrics_agree_with_the_functions():
    samples = [Sample(Path(f"{i}"), (Path("m"),) * (i > 1), i > 1, "c", "crack" if i > 1 else "good") for i in range(4)]
    rng = np.random.default_rng(1)
    maps, masks = rng.normal(size=(4, 16, 16)), np.zeros((4, 16, 16), bool)
    masks[2:, 4:8, 4:8] = True
    prediction = Prediction(torch.from_numpy(maps).amax((1, 2)), torch.from_numpy(maps))
    found = evaluate([(prediction, masks)], samples, [], NO_BAR).metrics
    assert found == evaluate([(prediction, masks)], samples, [], NO_BAR, on_disk=True).metrics
    assert list(found) == list(METRICS)
    pixels = metrics.pixel_metrics(masks, maps)
    assert [found[name] for name in ("pixel_auroc", "pro", "pixel_ap", "pixel_f1_max")] == [
        pixels[name] for name in ("auroc", "pro", "ap", "f1_max")
    ]
    labels, scores = [0, 0, 1, 1], maps.max((1, 2))
    assert found["image_ap"] == metrics.average_precision(labels, scores)
    assert found["image_f1_max"] == metrics.f1_max(labels, scores)


def test_decision_metrics_equal_scikit_learns():
    labels, decisions = np.array([1, 1, 1, 1, 0, 0, 0, 1]), np.array([1, 0, 0, 1, 1, 0, 0, 0])
    found = decision_metrics(labels.astype(bool).tolist(), decisions.astype(bool))
    precision, recall, f1, _ = precision_recall_fscore_support(labels, decisions, average="binary")
    expected = {"precision": precision, "recall": recall, "f1": f1, "accuracy": accuracy_score(labels, decisions)}
    assert found == pytest.approx(expected) and [*found, "seg_f1"] == list(DECISION_METRICS)
    quiet = decision_metrics([True, False], np.zeros(2, bool))
    assert math.isnan(quiet.pop("precision")) and quiet == {"recall": 0, "f1": 0, "accuracy": 0.5}
    for label in (True, False):
        assert all(map(math.isnan, decision_metrics([label] * 3, np.array([True, True, False])).values()))


def test_a_loco_run_has_further_columns_that_others_lack(tmp_path, mvtec):
    trees.mvtec_loco(tmp_path / "loco")
    for name, path in (("mvtec_loco", tmp_path / "loco"), ("mvtec", mvtec)):
        words = ["--results_path", str(tmp_path), "--run_name", name, *SMALL_NET, "dataset", *SMALL_DATA]
        main.main([*words, name, str(path)], standalone_mode=False)
        folder = tmp_path / "project" / "group" / name
        for table in ("results.csv", "results_best_epoch.csv", "results_per_seed.csv", "history.csv"):
            columns = pd.read_csv(folder / table).columns
            assert [c for c in columns if c in (*METRICS, *LOCO_METRICS)] == [
                *METRICS,
                *(LOCO_METRICS if name == "mvtec_loco" else ()),
            ]
    results = pd.read_csv(tmp_path / "project" / "group" / "mvtec_loco" / "results.csv")
    assert results[list(LOCO_METRICS)].notna().all(axis=None)
