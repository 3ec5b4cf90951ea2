"""Every dataset by its name: its published layout, where it is found, and what is said where it is not right."""

import json
import os
import pickle
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import trees
from conftest import SMALL_DATA, SMALL_NET, make_mvtec
from sklearn.metrics import roc_auc_score
from trees import TREES, mask, save, texture

import main
from datasets import DATASETS, FolderNames, Saturation, check_headers, find_root, folder_reader
from errors import DataError, UsageError

EVERY = pytest.mark.parametrize("build", TREES, ids=lambda build: build.__name__)


def name_of(build):
    return build.__name__.removesuffix("_converted")


def run(tmp_path, *data):
    """A run in this process; results.csv, and predictions.csv of every class."""
    words = ["--results_path", str(tmp_path / "results"), *SMALL_NET, "dataset", *SMALL_DATA, *map(str, data)]
    main.main(words, standalone_mode=False)
    folder = tmp_path / "results" / "project" / "group" / "test"
    predictions = [pd.read_csv(path) for path in sorted(folder.rglob("predictions.csv"))]
    return pd.read_csv(folder / "results.csv", index_col="class"), pd.concat(predictions)


@EVERY
def test_published_layout(tmp_path, build):
    build(tmp_path)
    reader, tree = DATASETS[name_of(build)], TREES[build]
    found = reader.find_classes(tmp_path)
    assert found == (["mono", "poly"] if reader.name == "elpv" else tree.classes)
    samples = reader.read_class(tmp_path, found[0])
    anomalous = [sample for sample in samples.test if sample.anomalous]
    normal = [*samples.train, *samples.validation, *(s for s in samples.test if not s.anomalous)]
    assert (len(samples.train), len(samples.validation)) == (tree.train, tree.validation)
    assert (len(samples.test) - len(anomalous), len(anomalous)) == (tree.normal, tree.anomalous)
    assert {sample.defect_type for sample in anomalous} == tree.defect_types
    assert not any(sample.anomalous or sample.mask_paths for sample in normal)
    assert {sample.defect_type for sample in normal} == {"good"}
    assert {sample.class_name for sample in normal + anomalous} == {found[0]}
    assert len(set(samples.train + samples.validation + samples.test)) == len(normal + anomalous)
    assert sum(len(sample.mask_paths) for sample in anomalous) == tree.masks
    check_headers(normal + anomalous)


@EVERY
def test_run(tmp_path, build, capsys):
    build(tmp_path / "data")
    tree, name = TREES[build], name_of(build)
    results, predictions = run(tmp_path, "-d", tree.classes[0], name, tmp_path / "data")
    row = results.loc[f"{name}_{tree.classes[0]}"]
    assert row["image_auroc"] == pytest.approx(roc_auc_score(predictions["label"], predictions["score"]), abs=1e-6)
    assert row[["pixel_auroc", "pro"]].notna().all() == (tree.masks > 0)
    assert predictions["label"].sum() == tree.anomalous
    assert "Reading dataset" not in capsys.readouterr().err


@EVERY
def test_an_unknown_class_is_answered_with_those_there_are(tmp_path, build):
    build(tmp_path / "data")
    name = name_of(build)
    with pytest.raises(UsageError, match=rf"'{name}' has no class 'train' in .*{TREES[build].classes[0]}"):
        run(tmp_path, "-d", "train", name, tmp_path / "data")


@pytest.mark.parametrize("name", DATASETS)
def test_an_empty_folder_is_answered_with_the_layout(tmp_path, name):
    with pytest.raises(DataError, match=f"^no class of dataset '.*' in '{tmp_path}': expected "):
        find_root(DATASETS[name], tmp_path)


@EVERY
def test_unpacked_a_folder_too_high(tmp_path, build, capsys):
    build(tmp_path / "data" / "archive")
    trees.no_data(tmp_path / "data" / "beside")
    name = name_of(build)
    root, classes = find_root(DATASETS[name], tmp_path / "data")
    assert root == tmp_path / "data" / "archive"
    assert set(TREES[build].classes) <= set(classes)
    run(tmp_path, "-d", TREES[build].classes[0], name, tmp_path / "data")
    assert f"Reading dataset '{name}' from '{root}'" in capsys.readouterr().err
    shutil.copytree(root, tmp_path / "data" / "copy")
    with pytest.raises(DataError, match=f"'{name}' several times, in archive, copy: give one"):
        find_root(DATASETS[name], tmp_path / "data")


@pytest.mark.parametrize("build", [trees.mvtec, trees.btad, trees.mvtec_loco, trees.visa, trees.visa_converted])
def test_given_the_folder_of_a_class(tmp_path, build, monkeypatch):
    build(tmp_path)
    reader, (name, *_) = DATASETS[name_of(build)], TREES[build].classes
    assert find_root(reader, tmp_path / name) == (tmp_path, [name])
    monkeypatch.chdir(tmp_path / name)
    assert find_root(reader, type(tmp_path)()) == (tmp_path, [name])


def test_given_the_folder_of_the_batches(tmp_path):
    trees.cifar10(tmp_path)
    samples = DATASETS["cifar10"].read_class(tmp_path / "cifar-10-batches-py", "cat")
    assert samples.test[3].image_path == tmp_path / "cifar-10-batches-py" / "test_batch" / "00003"


def test_folders_that_may_not_be_looked_into_are_passed_over(tmp_path):
    """The folder given must be readable; those around it may belong to somebody else."""
    trees.mvtec(tmp_path / "data")
    reader = DATASETS["mvtec"]

    def find_classes(folder):
        if folder.name == "closed":
            raise PermissionError("closed")
        return reader.find_classes(folder)

    (tmp_path / "closed").mkdir()
    guarded = replace(reader, find_classes=find_classes)
    assert find_root(guarded, tmp_path)[0] == tmp_path / "data"
    with pytest.raises(PermissionError):
        find_root(guarded, tmp_path / "closed")


def test_help_names_every_dataset():
    command = main.main.get_command(None, "dataset")
    text = command.get_help(command.make_context("dataset", ["mvtec"]))
    assert all(any(name in line for line in text.splitlines()) for name in DATASETS)


def test_loco_saturation(tmp_path):
    trees.mvtec_loco(tmp_path)
    assert DATASETS["mvtecloco"].read_class(tmp_path, "breakfast_box").saturation == {
        255: Saturation(0.5, True),
        254: Saturation(20.0, False),
    }


def test_sdd_split_is_by_item(tmp_path):
    trees.sdd(tmp_path)
    samples = DATASETS["sdd"].read_class(tmp_path, "commutator")
    assert {s.image_path.parent.name for s in samples.test if not s.anomalous} == {"kos01", "kos06"}
    assert not {"kos01", "kos06"} & {s.image_path.parent.name for s in samples.train}


def test_mtd_split_is_one_for_all_seeds(tmp_path):
    trees.mtd(tmp_path)
    tested = [s.image_path.stem for s in DATASETS["mtd"].read_class(tmp_path, "tile").test if not s.anomalous]
    drawn = sorted(np.random.default_rng(0).permutation(10)[:2].tolist())
    assert tested == [f"exp1_num_{i}" for i in drawn]


def test_cifar10_pixels(tmp_path):
    trees.cifar10(tmp_path)
    samples = DATASETS["cifar10"].read_class(tmp_path, "airplane")
    data = np.random.default_rng(5).integers(0, 256, (11, 3072), dtype=np.uint8)
    np.testing.assert_array_equal(samples.test[4].pixels[..., 1], data[4, 1024:2048].reshape(32, 32))
    assert samples.test[4].defect_type == "deer"
    assert [s.image_path.relative_to(tmp_path).as_posix() for s in samples.train[:3]] == [
        "data_batch_1/00000",
        "data_batch_1/00010",
        "data_batch_2/00000",
    ]


class Calls:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", ["batches.meta", "test_batch"])
def test_a_pickle_that_calls_is_refused(tmp_path, name, protocol):
    trees.cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / name
    for content in (Calls(os.mkdir, str(tmp_path / "made")), Calls(eval, "1"), Calls(np.fromfile, "/dev/null")):
        path.write_bytes(pickle.dumps({"data": content}, protocol))
        with pytest.raises(DataError, match=rf"'{path}' is no file of CIFAR-10: it asks for .*, which is not loaded"):
            DATASETS["cifar10"].read_class(tmp_path, "cat")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no file of CIFAR-10"),
        (b"text", "is no file of CIFAR-10"),
        (pickle.dumps([1], 2), "expected a dictionary"),
        (pickle.dumps({"labels": [1]}, 2), "is not a batch"),
        (None, "no '.*test_batch': expected cifar-10-batches-py"),
    ],
)
def test_a_bad_batch_is_named(tmp_path, content, words):
    trees.cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "test_batch"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=words):
        DATASETS["cifar10"].read_class(tmp_path, "cat")


def removed(path):
    return lambda root: shutil.rmtree(root / path) if (root / path).is_dir() else (root / path).unlink()


def written(path, text):
    return lambda root: (root / path).write_text(text)


HEAD = "object,split,label,image,mask\n"
BOX = "breakfast_box/"


@pytest.mark.parametrize(
    ("build", "spoil", "words"),
    [
        (trees.btad, removed("01/ground_truth/ko/0001.png"), r"no mask for '.*01/test/ko/0001\.bmp': .*'0001\.png'"),
        (trees.btad, removed("01/test"), r"no folder '.*01/test': expected CLASS/train/ok"),
        (
            trees.mvtec_loco,
            removed(BOX + "ground_truth/logical_anomalies/001"),
            r"no mask .*001\.png': .*/001/000\.png'",
        ),
        (trees.mvtec_loco, removed(BOX + "validation"), r"no folder '.*validation/good'"),
        (trees.mvtec_loco, removed(BOX + "defects_config.json"), r"no '.*defects_config\.json': expected CLASS"),
        (trees.mvtec_loco, written(BOX + "defects_config.json", "{"), r"defects_config\.json' is not as published"),
        (trees.mvtec_loco, written(BOX + "defects_config.json", '[{"pixel_value": 1}]'), "saturation_threshold"),
        (trees.visa, removed("candle/Data/Images/Normal/0001.JPG"), r"1cls\.csv' names '.*0001\.JPG', which does not"),
        (trees.visa, removed("candle/Data/Masks/Anomaly/000.png"), r"1cls\.csv' names '.*Masks/Anomaly/000\.png'"),
        (trees.visa, written("split_csv/1cls.csv", "object\ncandle\n"), "needs the columns image, label"),
        (trees.visa, written("split_csv/1cls.csv", HEAD + "candle,train\n"), "line 2: expected a value"),
        (trees.visa, written("split_csv/1cls.csv", HEAD + "candle,test,anomaly,a.JPG,\n"), r"no mask for '.*a\.JPG'"),
        (trees.visa, written("split_csv/1cls.csv", HEAD + "candle,test,normal,a.JPG,\n"), "'candle' in split 'train'"),
        (
            trees.sdd,
            removed("kos03/Part1_label.bmp"),
            r"no mask for '.*Part1\.jpg': expected '.*kos03/Part1_label\.bmp'",
        ),
        (trees.sdd2, removed("test/20001_GT.png"), r"no mask for '.*20001\.png': expected '.*20001_GT\.png'"),
        (trees.mtd, removed("MT_Crack/Imgs/exp2_num_1.png"), r"no mask for '.*MT_Crack/Imgs/exp2_num_1\.jpg'"),
        (
            trees.folder,
            removed("part/ground_truth/dent"),
            r"no mask for '.*a\.gif': .*dent/a\.png' or.*--mask_dir \"\"",
        ),
    ],
)
def test_what_is_missing_is_named(tmp_path, build, spoil, words):
    build(tmp_path)
    spoil(tmp_path)
    with pytest.raises(DataError, match=words):
        DATASETS[name_of(build)].read_class(tmp_path, TREES[build].classes[0])


def test_mtd_needs_enough_to_split(tmp_path):
    save(tmp_path / "MT_Free" / "Imgs" / "a.jpg", texture(0))
    with pytest.raises(DataError, match="holds 1 photographs: at least 5"):
        DATASETS["mtd"].read_class(tmp_path, "tile")


@pytest.fixture
def own(tmp_path):
    """Images in folders of one's own: five normal ones, two kinds of anomalous ones, masks side by side."""
    for i in range(5):
        save(tmp_path / "own" / "ok" / f"{i}.png", texture(i))
    save(tmp_path / "own" / "more" / "0.png", texture(5))
    for i, kind in enumerate(("cut", "hole")):
        save(tmp_path / "own" / "ng" / kind / f"{i}.png", texture(6 + i))
        save(tmp_path / "own" / "masks" / f"{i}_mask.png", mask())
    return tmp_path / "own"


def test_own_folders_on_the_command_line(tmp_path, own):
    folders = [
        "--normal_dir",
        "ok",
        "--normal_test_dir",
        "more",
        "--abnormal_dir",
        "ng/cut",
        "--abnormal_dir",
        "ng/hole",
    ]
    results, predictions = run(tmp_path, *folders, "--mask_dir", "masks", "folder", own)
    assert results.loc["folder_own"].filter(regex="pixel|pro").notna().all()
    assert predictions["image"].tolist() == ["more/0.png", "ng/cut/0.png", "ng/hole/1.png"]
    assert predictions["defect_type"].tolist() == ["good", "cut", "hole"]
    config = json.loads((tmp_path / "results/project/group/test/config.json").read_text())
    assert config["dataset"]["options"]["abnormal_dir"] == ["ng/cut", "ng/hole"]
    results, predictions = run(tmp_path / "without", *folders, "--mask_dir", "", "folder", own)
    assert results.loc["folder_own"].filter(regex="pixel|pro").isna().all()
    auroc = roc_auc_score(predictions["label"], predictions["score"])
    assert results.loc["folder_own", "image_auroc"] == pytest.approx(auroc, abs=1e-6)


def test_only_normal_images(tmp_path, own):
    results, predictions = run(tmp_path, "--normal_dir", "ok", "folder", own)
    assert predictions["image"].tolist() == ["ok/0.png"]
    assert results.isna().all(axis=None)


def test_every_fifth_normal_image_is_tested_where_no_others_are(own):
    for i in range(5, 12):
        save(own / "ok" / f"{i:02}.png", texture(i))
    samples = folder_reader(FolderNames(normal_dir="ok")).read_class(own, "own")
    names = [path.name for path in sorted((own / "ok").iterdir())]
    assert [s.image_path.name for s in samples.test] == names[::5]
    assert [s.image_path.name for s in samples.train] == [name for i, name in enumerate(names) if i % 5]


def test_masks_by_path_below_the_defect_folder(tmp_path):
    trees.folder(tmp_path)
    part = tmp_path / "part"
    samples = DATASETS["folder"].read_class(tmp_path, "part")
    assert [
        (s.image_path.relative_to(part).as_posix(), *(m.relative_to(part).as_posix() for m in s.mask_paths))
        for s in samples.test
    ] == [
        ("test/good/a.TIF",),
        ("test/dent/a.gif", "ground_truth/dent/a.png"),
        ("test/scratch/b.webp", "ground_truth/b.bmp"),
        ("test/scratch/deep/a.ppm", "ground_truth/scratch/deep/a_mask.png"),
    ]
    assert DATASETS["folder"].find_classes(part) == ["part"]
    assert DATASETS["folder"].read_class(part, "part") == samples


@pytest.mark.parametrize(
    ("names", "error", "words"),
    [
        ({"normal_dir": "/ok"}, UsageError, "--normal_dir /ok: expected a path relative"),
        ({"abnormal_dir": ("ng", "/ng")}, UsageError, "--abnormal_dir /ng: expected a path relative"),
        ({"normal_test_dir": "gone"}, DataError, r"no folder '.*own/gone' \(--normal_test_dir\)"),
        ({"abnormal_dir": ("gone",)}, DataError, r"no folder '.*own/gone' \(--abnormal_dir\)"),
        ({"abnormal_dir": ("ng",), "mask_dir": "gone"}, DataError, r"no folder '.*own/gone' \(--mask_dir\)"),
        ({"abnormal_dir": ("ng", "ng/cut")}, UsageError, "'.*ng/cut' is or lies in '.*ng'"),
        ({"normal_test_dir": "ok"}, UsageError, "'.*ok' is or lies in '.*ok'"),
        ({"abnormal_dir": ("none",)}, DataError, "no images in '.*none'"),
        ({"normal_dir": "more"}, DataError, "holds one image"),
        ({"normal_dir": "none"}, DataError, "no images in '.*none'"),
        (
            {"abnormal_dir": ("ng/cut", "ng2"), "mask_dir": "masks"},
            DataError,
            r"0_mask\.png' is that of '.*' and of '.*ng2/0",
        ),
    ],
)
def test_own_folders_that_cannot_be(own, names, error, words):
    (own / "none").mkdir()
    save(own / "ng2" / "0.png", texture(8))
    with pytest.raises(error, match=words):
        folder_reader(FolderNames(**{"normal_dir": "ok", **names})).read_class(own, "own")


def test_several_classes_of_own_images(tmp_path):
    make_mvtec(tmp_path, ["bolt", "nut"])
    reader = DATASETS["folder"]
    assert find_root(reader, tmp_path) == (tmp_path, ["bolt", "nut"])
    own, published = reader.read_class(tmp_path, "nut"), DATASETS["mvtec"].read_class(tmp_path, "nut")
    assert set(own.train + own.test) == set(published.train + published.test)
