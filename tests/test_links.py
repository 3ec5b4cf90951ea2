"""Links: followed once, never in a loop, and named where they lead nowhere; files of one name."""

import shutil

import pandas as pd
import pytest
import trees
from conftest import SMALL_DATA, SMALL_NET
from trees import save, texture

import main
from datasets import DATASETS, check_headers, images_in
from errors import DataError, UsageError


def names(folder):
    return [path.relative_to(folder).as_posix() for path in images_in(folder, recursive=True)]


def run(where, *words):
    command = ["--results_path", where / "results", *SMALL_NET, "dataset", *SMALL_DATA, *words]
    main.main(list(map(str, command)), standalone_mode=False)
    return next((where / "results").rglob("model.json")).parent


@pytest.fixture
def part(tmp_path):
    """A class of `folder` beside which more images lie."""
    for i in range(3):
        save(tmp_path / "data" / "train" / "good" / f"{i}.png", texture(i))
        save(tmp_path / "shift2" / f"{i}.png", texture(10 + i))
        save(tmp_path / "data" / "test" / "hole" / f"{i}.png", texture(20 + i))
    return tmp_path / "data"


def test_links_to_folders_are_followed_once(part):
    good = part / "train" / "good"
    (good / "shift2").symlink_to(part.parent / "shift2")
    assert names(good) == ["0.png", "1.png", "2.png", "shift2/0.png", "shift2/1.png", "shift2/2.png"]
    (good / "again").symlink_to(part.parent / "shift2")
    assert names(good) == ["0.png", "1.png", "2.png", "again/0.png", "again/1.png", "again/2.png"]
    save(good / "z" / "deep" / "9.png", texture(9))
    (good / "a").symlink_to(good / "z" / "deep")
    assert [name for name in names(good) if "9" in name] == ["z/deep/9.png"]  # a folder keeps its own name


def test_loops_are_not_followed(part):
    good = part / "train" / "good"
    expected = names(good)
    for name, target in (("self", good), ("up", part), ("round", good.parent)):
        (good / name).symlink_to(target)
    (good / "none").symlink_to(good / "none")
    (part.parent / "shift2" / "back").symlink_to(good)
    assert names(good) == expected
    (good / "shift2").symlink_to(part.parent / "shift2")
    assert len(names(good)) == 6


def test_no_link_leads_from_training_to_test_images(part):
    read = DATASETS["folder"].read_class
    (part / "train" / "good" / "more").symlink_to(part / "test" / "hole")
    words = (
        f"'{part}/train/good/more' and '{part}/test/hole' are one folder, so that images would be trained and tested"
    )
    with pytest.raises(UsageError, match=words):
        read(part, "data")
    (part / "train" / "good" / "more").unlink()
    (part / "test" / "hole" / "more").symlink_to(part / "train" / "good")
    with pytest.raises(UsageError, match="are one folder"):
        read(part, "data")


def test_a_run_and_predict_read_linked_folders(part, tmp_path, capsys):
    (part / "train" / "good" / "shift2").symlink_to(tmp_path / "shift2")
    model = run(tmp_path, "folder", part)
    table = pd.read_csv(model / "predictions.csv")
    assert (table["label"] == 0).sum() == 2  # every fifth of six
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "link").symlink_to(tmp_path / "shift2")
    words = ["predict", model, tmp_path / "photos", "--out", tmp_path / "out", "--map", "none"]
    assert main.main(list(map(str, words)), standalone_mode=False) == 0
    assert len(pd.read_csv(tmp_path / "out" / "predictions.csv")) == 3


def test_files_that_are_not_there_are_named(part, tmp_path):
    """By a run, which refuses them; by predict in their rows."""
    model = run(tmp_path, "folder", part)
    shutil.rmtree(tmp_path / "results" / "project" / "group" / "test" / "tensorboard", ignore_errors=True)
    good = part / "train" / "good"
    for i in range(5, 30):
        (good / f"{i:02}.png").symlink_to(f"../../.git/annex/objects/{i}")
    (good / "30.png.dvc").write_text("outs:\n")
    (good / "0.png.dvc").write_text("outs:\n")  # this one is there
    with pytest.raises(DataError) as raised:
        run(tmp_path, "folder", part)
    text = str(raised.value)
    assert text.startswith(
        f"26 files cannot be used: '{good}/05.png' is a link to '../../.git/annex/objects/5', which "
    )
    assert "git annex get, dvc pull" in text
    assert text.endswith("; and 6 more")
    words = ["predict", model, good, "--out", tmp_path / "out", "--map", "none"]
    assert main.main(list(map(str, words)), standalone_mode=False) == 1
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert table["score"].notna().sum() == 3
    assert table["error"].str.contains("is a link to").sum() == 25
    assert table["error"].str.contains("30.png' is not there, only .*30.png.dvc' of DVC: fetch").sum() == 1


LINKED_MASKS = {
    "mvtec": ("bottle", "bottle/ground_truth/crack/000_mask.png"),
    "btad": ("01", "01/ground_truth/ko/0000.png"),
    "mvtec_loco": ("breakfast_box", "breakfast_box/ground_truth/logical_anomalies/000/000.png"),
    "mtd": ("tile", "MT_Crack/Imgs/exp2_num_1.png"),
    "sdd": ("commutator", "kos01/Part0_label.bmp"),
    "sdd2": ("surface", "test/20001_GT.png"),
    "folder": ("part", "part/ground_truth/dent/a.png"),
    "visa": ("candle", "candle/Data/Images/Normal/0001.JPG"),
}


@pytest.mark.parametrize("name", LINKED_MASKS)
def test_every_reader_names_a_link_to_nothing(tmp_path, name):
    getattr(trees, name)(tmp_path)
    class_name, path = LINKED_MASKS[name]
    (tmp_path / path).unlink()
    (tmp_path / path).symlink_to("gone")
    with pytest.raises(DataError, match=rf"'{tmp_path / path}'.* which does not exist"):
        samples = DATASETS[name].read_class(tmp_path, class_name)
        check_headers(samples.train + samples.test)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mvtec", "bottle/test/scratch"),
        ("btad", "01/test/other"),
        ("folder", "part/test/burn"),
        ("sdd", "kos09"),
        ("mtd", "MT_New"),
        ("mvtec", "cable"),
    ],
)
def test_a_folder_that_is_a_link_to_nothing_is_named(tmp_path, name, folder):
    """Whatever it is of: a defect type, an item, a class."""
    getattr(trees, name)(tmp_path / "data")
    (tmp_path / "data" / folder).symlink_to("gone")
    with pytest.raises(
        DataError, match=rf"^'{tmp_path / 'data' / folder}': a link to 'gone', which does not exist; fetch"
    ):
        run(tmp_path, name, tmp_path / "data")


@pytest.mark.parametrize(
    ("name", "path", "other"),
    [
        ("sdd2", "test/20001.png", "test/20001.jpg"),
        ("sdd2", "train/10001_GT.png", "train/10001_GT.bmp"),
        ("sdd", "kos01/Part0.jpg", "kos01/Part0.png"),
        ("sdd", "kos01/Part1_label.bmp", "kos01/Part1_label.png"),
        ("mtd", "MT_Crack/Imgs/exp2_num_1.jpg", "MT_Crack/Imgs/exp2_num_1.JPG"),
        ("mtd", "MT_Fray/Imgs/exp2_num_1.png", "MT_Fray/Imgs/exp2_num_1.PNG"),
    ],
)
def test_two_files_of_one_name_are_refused(tmp_path, name, path, other):
    getattr(trees, name)(tmp_path)
    shutil.copy(tmp_path / path, tmp_path / other)
    first, second = sorted([tmp_path / path, tmp_path / other])
    says = "(have one name|would share one mask|are both the mask of one image): remove"
    with pytest.raises(DataError, match=f"^'{first}' and '{second}' {says}"):
        DATASETS[name].read_class(tmp_path, DATASETS[name].find_classes(tmp_path)[0])
