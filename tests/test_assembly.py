"""Assembly: what its scenes keep and break, its images and masks, and how they come to disk and into a run."""

import json
import math
import os
import re
import runpy
import subprocess
import sys
from collections import Counter

import cv2
import numpy as np
import pandas as pd
import pytest
from commands import FORKS, ROOT
from conftest import SMALL_DATA, SMALL_NET

import datasets.assembly as assembly
import main
from datasets import DATASETS, AssemblyOptions, ImageTransform, assembly_reader, check_headers, read_defects
from datasets.assembly import box, cable, defects, rods
from datasets.assembly.pictures import KINDS, LOGICAL, SPLITS, STRUCTURAL, picture, rules
from datasets.assembly.render import draw, photograph
from datasets.assembly.scene import SIZE
from errors import DataError, UsageError
from metrics import LOCO_METRICS, spro

EVERY = pytest.mark.parametrize("name", KINDS)
SMALL = AssemblyOptions(n_train=3, n_test=4)


def drawn(count, make):
    """What a function of a generator makes of several."""
    return [make(np.random.default_rng(i)) for i in range(count)]


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """All classes, written small; tests must not change them."""
    root = tmp_path_factory.mktemp("assembly")
    for name in KINDS:
        assembly.write_class(root / name, SMALL)
    return root


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "simplenet" / "assembly"


# Constraints, on descriptions


def of_box(scene):
    return {place: Counter(kinds) for place, kinds in box.contents(scene).items()}


FULL = {kind: Counter({kind: count}) for kind, count in box.COUNTS.items()}


def test_normal_boxes_are_full():
    for scene in drawn(30, box.normal):
        assert of_box(scene) == FULL
        assert len(scene.parts) == sum(box.COUNTS.values())


def test_what_is_wrong_in_boxes():
    for scene, (defect,) in drawn(12, box.missing):
        kind = defect.name.removeprefix("missing_")
        assert of_box(scene) == {**FULL, kind: Counter({kind: box.COUNTS[kind] - 1})}
        assert defect.floors == (box.COMPARTMENTS[kind],)
    for scene, (defect,) in drawn(12, box.extra):
        kind = defect.name.removeprefix("extra_")
        assert of_box(scene) == {**FULL, kind: Counter({kind: box.COUNTS[kind] + 1})}
        assert [scene.parts[i].kind for i in defect.parts] == [kind] * (box.COUNTS[kind] + 1)
    for scene, found in drawn(12, box.swapped):
        assert sum(of_box(scene).values(), Counter()) == sum(FULL.values(), Counter())
        (one,), (other,) = (defect.parts for defect in found)
        assert scene.parts[one].kind != scene.parts[other].kind
        assert [place for place in FULL if of_box(scene)[place] != FULL[place]] == [
            kind for kind in FULL if kind in (scene.parts[one].kind, scene.parts[other].kind)
        ]
    for scene, (there, gone) in drawn(12, box.misplaced):
        (i,) = there.parts
        assert sum(of_box(scene).values(), Counter()) == sum(FULL.values(), Counter())
        assert not box.COMPARTMENTS[scene.parts[i].kind].contains(scene.parts[i].centre)
        assert gone.name == f"missing_{scene.parts[i].kind}"


def test_normal_cables_join_like_terminals_in_the_labels_colour():
    seen = set()
    for scene in drawn(60, cable.normal):
        (one,) = cable.cables(scene)
        left, right = cable.terminals(one)
        assert left == right
        assert cable.colours(scene) == ([one.colour], one.colour)
        seen.add((one.colour, left))
    assert len(seen) > 8  # of 12 combinations


def test_what_is_wrong_with_cables():
    for scene, _ in drawn(8, cable.missing):
        assert cable.cables(scene) == []
    for scene, (defect,) in drawn(8, cable.extra):
        one, other = cable.cables(scene)
        assert one.colour == other.colour == cable.colours(scene)[1]
        assert cable.terminals(one) != cable.terminals(other)
        assert [scene.parts[i] for i in defect.parts] == [one, other]
    for scene, _ in drawn(8, cable.misplaced):
        (one,) = cable.cables(scene)
        assert len(set(cable.terminals(one))) == 2
        assert one.colour == cable.colours(scene)[1]
    for scene, (defect,) in drawn(8, cable.mismatched):
        (own,), label = cable.colours(scene)
        assert own != label
        assert [scene.parts[i].kind for i in defect.parts] == ["cable", "print"]


def measured(scene):
    """The kinds, lengths and outer gaps of both rods, and the number of rivets."""
    one, other = rods.rods(scene)
    lengths = [one.size[0] + 1, other.size[0] + 1]
    gaps = [one.centre[0] - lengths[0] / 2 - rods.SLOT.left, rods.SLOT.right - other.centre[0] - lengths[1] / 2]
    return (one.kind, other.kind), lengths, gaps, len(rods.rivets(scene))


def test_normal_rods_add_up():
    lengths = []
    for scene in drawn(60, rods.normal):
        kinds, sizes, _, count = measured(scene)
        assert (kinds, count) == (("rod", "bar"), rods.RIVETS)
        assert sum(sizes) == pytest.approx(rods.LENGTH)
        lengths.append(sizes[0])
    assert max(lengths) - min(lengths) > 40


def test_what_is_wrong_with_rods():
    for make, count in ((rods.missing, rods.RIVETS - 1), (rods.extra, rods.RIVETS + 1)):
        for scene, (defect,) in drawn(8, make):
            kinds, sizes, _, found = measured(scene)
            assert (kinds, found) == (("rod", "bar"), count)
            assert sum(sizes) == pytest.approx(rods.LENGTH)
            assert {scene.parts[i].kind for i in defect.parts} <= {"rivet"}
    for scene, _ in drawn(8, rods.swapped):
        kinds, sizes, _, found = measured(scene)
        assert (kinds, found) == (("bar", "rod"), rods.RIVETS)
        assert sum(sizes) == pytest.approx(rods.LENGTH)


def test_wrong_lengths_show_in_their_sum_alone():
    """Each rod and each gap is of a size that normal scenes have too."""
    normal = [measured(scene) for scene in drawn(200, rods.normal)]
    widest = max(max(gaps) for _, _, gaps, _ in normal)
    sums = set()
    for scene, _ in drawn(30, rods.mismatched):
        _, sizes, gaps, count = measured(scene)
        assert count == rods.RIVETS
        assert all(rods.SHORTEST <= size <= rods.LONGEST for size in sizes)
        assert min(gaps) >= 4
        assert max(gaps) <= widest + 3
        sums.add(round(sum(sizes)))
    assert sums == {rods.LENGTH - rods.ERROR, rods.LENGTH + rods.ERROR}


@EVERY
def test_parts_lie_apart(name):
    """Loose parts of a compartment or groove never cover each other."""
    for scene in drawn(5, KINDS[name].normal):
        loose = [part for part in scene.parts if part.kind in (*box.COUNTS, "rivet")]
        for i, one in enumerate(loose):
            for other in loose[:i]:
                if one.is_round and other.is_round:
                    assert math.dist(one.centre, other.centre) >= (one.size[0] + other.size[0]) / 2


# Images and masks


@EVERY
@pytest.mark.parametrize("split", [LOGICAL, STRUCTURAL])
def test_masks(name, split):
    known = {rule.name for rule in rules(name)}
    turns = len(defects.DEFECTS if split == STRUCTURAL else KINDS[name].anomalies)
    for index in range(turns):
        found = picture(name, 5, split, index)
        assert found.defects
        for defect, mask in found.defects:
            assert defect in known
            assert (mask.shape, mask.dtype) == ((SIZE, SIZE), bool)
            least, most = (defects.SMALLEST, defects.LARGEST) if split == STRUCTURAL else (150, 15000)
            assert least <= mask.sum() <= most
            assert not (mask[:4].any() or mask[-4:].any() or mask[:, :4].any() or mask[:, -4:].any())


@EVERY
def test_structural_defects_change_nothing_outside_their_masks(name):
    for i, kind in enumerate(defects.DEFECTS):
        scene = KINDS[name].normal(np.random.default_rng(i))
        image, mask = defects.damaged(scene, kind, np.random.default_rng(i))
        whole = photograph(draw(scene).pixels, scene.view)
        np.testing.assert_array_equal(image[~mask], whole[~mask])
        assert np.abs(image[mask].astype(int) - whole[mask]).max(axis=1).mean() > defects.VISIBLE


def test_a_missing_part_is_the_free_floor_of_its_compartment():
    scene, (defect,) = box.missing(np.random.default_rng(0))
    canvas = draw(scene)
    area = assembly.pictures.defect_area(defect, canvas)
    assert not any((area & part).any() for part in canvas.areas)
    (floor,) = defect.floors
    lying = sum(int(a.sum()) for a, p in zip(canvas.areas, scene.parts, strict=True) if floor.contains(p.centre))
    assert area.sum() == pytest.approx(floor.size[0] * floor.size[1] - lying, abs=4)


@EVERY
def test_rules_fit_what_is_drawn(name):
    """Areas in pixels at which a defect is found are those of the part that is missing or too many."""
    for rule in rules(name):
        if rule.name.startswith("extra") and not rule.relative:
            seen = [picture(name, 0, LOGICAL, i).defects for i in (range(1, 41, 4) if name == "box" else (1, 5))]
            areas = [mask.sum() for found in seen for defect, mask in found if defect == rule.name]
            counts = {**box.COUNTS, "rivet": rods.RIVETS}[rule.name.removeprefix("extra_")] + 1
            assert areas
            assert np.mean(areas) / counts == pytest.approx(rule.threshold, rel=0.12)


@EVERY
def test_seeds_classes_splits_and_indices_give_other_images(name):
    images = [picture(name, seed, split, i).image for seed in (0, 1) for split in SPLITS for i in (0, 1)]
    assert len({image.tobytes() for image in images}) == len(images)
    assert all(image.shape == (SIZE, SIZE, 3) and image.dtype == np.uint8 for image in images)


# On disk


def test_the_same_bytes_every_time_and_in_a_larger_dataset(written, tmp_path):
    code = (
        "import sys; from pathlib import Path; from datasets.assembly import *; "
        "[write_class(Path(sys.argv[1]) / name, AssemblyOptions(n_train=4, n_test=5)) for name in CLASSES]"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=ROOT)
    small, large = files(written), files(tmp_path)
    assert small.items() <= large.items()
    assert len([path for path in small if "/train/" in path or "/test/" in path]) == 3 * (3 + 3 * 4)


@EVERY
def test_locos_reader_reads_what_is_written(written, name):
    loco, own = DATASETS["mvtec_loco"], DATASETS["assembly"]
    samples = loco.read_class(written, name)
    assert own.read_class(written, name) == samples
    assert own.find_classes(written) == loco.find_classes(written) == sorted(KINDS)
    assert (len(samples.train), len(samples.validation), len(samples.test)) == (3, 1, 12)
    check_headers(samples.train + samples.validation + samples.test)
    config = json.loads((written / name / "defects_config.json").read_text())
    values = [entry["pixel_value"] for entry in config]
    assert len(set(values)) == len(values) == len(samples.saturation)
    for sample in samples.test:
        for path in sample.mask_paths:
            assert set(np.unique(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))) <= {0, *values}
    anomalous = [sample for sample in samples.test if sample.anomalous]
    found = read_defects(anomalous, samples.saturation, ImageTransform(SIZE, SIZE))
    assert {i for i, _, _ in found} == set(range(8))
    assert all(0 < saturation <= mask.sum() for _, mask, saturation in found)
    assert spro(found, np.random.default_rng(0).random((8, SIZE, SIZE), np.float32)) < 0.5


def test_classes_are_written_when_they_are_read(cache, capsys):
    reader = assembly_reader(AssemblyOptions(2, 1, dataset_seed=3))
    root = reader.default_root()
    assert root == cache / f"v{assembly.VERSION}-seed_3-train_2-test_1"
    assert reader.find_classes(root) == ["box", "cable", "rods"]
    assert list(root.iterdir()) == []
    samples = reader.read_class(root, "rods")
    assert [path.name for path in root.iterdir()] == ["rods"]
    assert capsys.readouterr().err.count(f"Writing class 'rods' of dataset 'assembly' to '{root}'") == 1
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert reader.read_class(root, "rods") == samples
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert capsys.readouterr().err == ""


def test_a_half_written_class_does_no_harm(cache, monkeypatch):
    reader = assembly_reader(AssemblyOptions(2, 1))
    root = reader.default_root()
    leftover = root / f".box.0123{assembly.PARTIAL}" / "train" / "good"
    leftover.mkdir(parents=True)  # of a process that was killed
    (leftover / "000.png").write_bytes(b"half")
    pictures = iter(range(3))

    def stop(*place, draw=assembly.picture):
        next(pictures)
        return draw(*place)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):  # what StopIteration becomes in a generator
        patch.setattr(assembly, "picture", stop)
        reader.read_class(root, "box")
    assert [path.name for path in root.iterdir()] == [f".box.0123{assembly.PARTIAL}"]
    assert len(reader.read_class(root, "box").train) == 2
    assert reader.find_classes(root) == ["box", "cable", "rods"]


def read_two(cache_home):
    """In a process of its own: exits with the number of images."""
    os.environ["XDG_CACHE_HOME"] = cache_home
    reader = assembly_reader(AssemblyOptions(2, 1))
    sys.exit(len(reader.read_class(reader.default_root(), "cable").train))


def test_two_processes_at_once(cache):
    both = [FORKS.Process(target=read_two, args=(os.environ["XDG_CACHE_HOME"],)) for _ in "ab"]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [2, 2]
    (root,) = cache.iterdir()
    assert [path.name for path in root.iterdir()] == ["cable"]


def test_another_process_was_first(cache, monkeypatch):
    reader = assembly_reader(AssemblyOptions(1, 1))
    root = reader.default_root()

    def first(*place, draw=assembly.picture):
        (root / "box").mkdir(exist_ok=True)
        (root / "box" / "theirs").touch()
        return draw(*place)

    monkeypatch.setattr(assembly, "picture", first)
    assembly.write_class(root / "box", AssemblyOptions(1, 1))
    assert list(root.rglob("*")) == [root / "box", root / "box" / "theirs"]


def test_a_full_disk_is_one_line(cache, monkeypatch):
    reader = assembly_reader(AssemblyOptions(1, 1))
    root = reader.default_root()

    def full(path, content):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(DataError, match=r"'assembly' cannot be written to '.*box': No space left.*XDG_CACHE_HOME"):
        reader.read_class(root, "box")
    assert list(root.iterdir()) == []


def test_a_cache_that_is_no_folder(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"'assembly' cannot be written to .*Not a directory"):
        assembly_reader(SMALL).default_root()


def test_the_cache_folder_is_the_users(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert assembly.cache_folder(SMALL).parent == tmp_path / ".cache" / "simplenet" / "assembly"


# Runs


def test_a_run_without_a_path(run_main, tmp_path, cache, monkeypatch):
    data = ["dataset", *SMALL_DATA, "--n_train", "6", "--n_test", "3", "--dataset_seed", "5", "-d", "box", "assembly"]
    done = run_main(*SMALL_NET, *data, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    root = cache / f"v{assembly.VERSION}-seed_5-train_6-test_3"
    assert [path.name for path in root.iterdir()] == ["box"]
    folder = tmp_path / "results" / "project" / "group" / "test"
    results = pd.read_csv(folder / "results.csv", index_col="class")
    assert list(results.index) == ["assembly_box", "Mean"]
    assert results[list(LOCO_METRICS)].notna().all(axis=None)
    predictions = pd.read_csv(next(folder.rglob("predictions.csv")))
    assert (len(predictions), predictions["label"].sum()) == (9, 6)
    config = json.loads((folder / "config.json").read_text())
    assert config["dataset"]["options"] == {"n_train": 6, "n_test": 3, "dataset_seed": 5}
    data[data.index("--n_train") + 1] = "5"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"dataset\.options\.n_train 6, now 5"):
        main.main([*SMALL_NET, *data], standalone_mode=False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--n_train", "3", "mvtec", "DATA"], "--n_train is an option of dataset assembly, not of 'mvtec': leave it"),
        (["--dataset_seed", "0", "elpv"], "--dataset_seed is an option of dataset assembly, not of 'elpv'"),
        (["--normal_dir", "ok", "assembly"], "--normal_dir is an option of dataset folder, not of 'assembly'"),
        (["--n_test", "3", "assembly", "DATA"], "--n_test says what to draw, but DATA_PATH is given"),
        (["--n_train", "0", "assembly"], "Invalid value for '--n_train': 0 is not in the range 1<=x<=100000"),
        (["--dataset_seed", "-1", "assembly"], "Invalid value for '--dataset_seed'"),
        (["-d", "boxes", "assembly"], "has no class 'boxes' in .*: did you mean box"),
    ],
)
def test_flags_that_cannot_work(cache, monkeypatch, capsys, tmp_path, words, message):

    words = [word.replace("DATA", str(tmp_path)) for word in words]
    monkeypatch.setattr(main, "stop_on_signals", lambda: None)
    monkeypatch.setattr(sys, "argv", ["main.py", *SMALL_NET, "dataset", *SMALL_DATA, *words])
    assert main.cli() == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert re.search(message, line), line
    assert not list(cache.rglob("*.png"))


def test_the_page_of_examples(tmp_path, monkeypatch):
    page = tmp_path / "page.jpg"
    monkeypatch.setattr(sys, "argv", ["", str(page)])
    runpy.run_module("datasets.assembly", run_name="__main__")
    assert cv2.imread(str(page)).shape == (3 * SIZE, 3 * SIZE, 3)
