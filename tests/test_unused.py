"""Flags that would do nothing are refused where they are given, with a line that says why; no others are."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import SMALL_DATA, SMALL_LOGICRD, SMALL_MULTIMODAL, SMALL_NET, small

import main
from errors import DataError, UsageError
from experiment.scale.parallel import Cluster, choose_cluster

PIXELS = ["multimodal", "--image_tokens", "pixels", "--dim", "8", "--heads", "2", "--depth", "1", "--epochs", "1"]
TABLES = [*PIXELS[:1], *PIXELS[3:]]


def call(*words):
    return main.main([str(word) for word in words], standalone_mode=False)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "records.csv"
    lines = [f"{i / 7},{i % 3},{int(i > 20)}" for i in range(24)]
    path.write_text("\n".join(["a,b,sick", *lines]) + "\n")
    return path


@pytest.mark.parametrize(
    ("words", "flag", "why"),
    [
        (["net", "--aed_meta_epochs", "2"], "--aed_meta_epochs", "without --cos_lr"),
        (["net", "--proj_layer_type", "2"], "--proj_layer_type", "fewer than two layers"),
        (["net", "--pre_proj", "0", "--adaptor_lr", "0.1"], "--adaptor_lr", "without an adaptor"),
        (["--feature_bank", "host", "net", "--train_backbone"], "--feature_bank", "with --train_backbone"),
        (["--grid", "aed_meta_epochs=1,2", "net"], "--aed_meta_epochs", "without --cos_lr"),
        (["logicrd", "--no_fcp", "--no_nii"], "--no_nii", "with --no_fcp"),
        (["patchcore", "-p", "0.3", "--bank_size", "9"], "--percentage", "with --bank_size"),
        (["patchcore", "-p", "0.3", "--sampler", "identity"], "--percentage", "which keeps all"),
        (["reconpatch", "--alpha", "0", "--sigma", "1"], "--sigma", "with --alpha 0"),
        (["reconpatch", "--alpha", "1", "--k_nearest", "4"], "--k_nearest", "with --alpha 1"),
        (["template", "--window", "5"], "--window", "without --score correlation"),
        (["template", "--references", "5"], "--references", "without --score nearest"),
        (
            ["template", "--score", "nearest", "--least_spread", "0.1"],
            "--least_spread",
            "score deviation or correlation",
        ),
        (["template", "--score", "nearest", "--centre", "mean"], "--centre", "with --score nearest and --align none"),
        (["frequency", "--k", "5"], "--k", "without --mode notch or reference"),
        (["frequency", "--mode", "notch", "--damp", "1"], "--damp", "without --mode phase or phot"),
        (["lowrank", "--weight", "2"], "--weight", "without --of image"),
        (["lowrank", "--of", "image", "--rank", "2"], "--rank", "without --of training"),
        (["gaussian", "--components", "3"], "--components", "without --of patches"),
        (["gaussian", "--components", "3", "--of", "patches"], "--eps", "on a mixture"),
        (["gaussian", "--shrinkage", "ledoit_wolf"], "--eps", "without --shrinkage constant"),
        (["oneclass", "--machine", "linear"], "--landmarks", "without --machine nystroem"),
        (["oneclass", "--machine", "svdd", "--gamma", "1", "--landmarks", "500"], "--gamma", "nystroem or gaussian"),
        (["multimodal", "--token_size", "8"], "--token_size", "without --image_tokens pixels"),
        (["pixels", "--align_maps"], "--align_maps", "no backbone"),
        (["pixels", "--normalisation", "model"], "--normalisation", "no backbone"),
        (["pixels", "--backbone_weights", "w.pth"], "--backbone_weights", "no backbone"),
    ],
)
def test_of_detectors(tmp_path, monkeypatch, mvtec, words, flag, why):
    monkeypatch.chdir(tmp_path)
    kinds = {"net": SMALL_NET, "logicrd": SMALL_LOGICRD, "multimodal": SMALL_MULTIMODAL, "pixels": PIXELS}
    kinds |= {command: small(command) for command in ("patchcore", "reconpatch", "template", "gaussian", "oneclass")}
    words = [own for word in words for own in kinds.get(word, [word])]
    with pytest.raises(UsageError, match=f"^{re.escape(flag)} has no effect .*{why}.*: leave it out$"):
        call(*words, "dataset", *SMALL_DATA, "mvtec", mvtec)
    assert not Path("results").exists()


def test_of_changes_that_are_none(tmp_path, monkeypatch, mvtec):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="--draw_once has no effect without random changes"):
        call(*SMALL_NET, "dataset", *SMALL_DATA, "--draw_once", "mvtec", mvtec)
    assert not Path("results").exists()


@pytest.mark.parametrize(
    ("run", "data", "flag"),
    [
        (["--save_segmentation_images"], [], "--save_segmentation_images"),
        (["--grid", "match_light=off,gain"], [], "--match_light"),
        ([], ["--augment"], "--rotate_degrees (or --augment)"),
        ([], ["--hflip", "0.5"], "--hflip (or --augment)"),
        ([], ["--bit_depth", "12"], "--bit_depth"),
        ([], ["--max_pixels", "1000"], "--max_pixels"),
        ([], ["--test_file", "other.csv", "--split_seed", "3"], "--split_seed"),
        (["--grid", "split_seed=0,1"], ["--test_file", "other.csv"], "--split_seed"),
    ],
)
def test_of_tables(tmp_path, monkeypatch, table, run, data, flag):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"^{re.escape(flag)} has no effect .*: leave it out$"):
        call(*run, *TABLES, "dataset", "--label", "sick", *data, "table", table)
    assert not Path("results").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["net", "--aed_meta_epochs", "2", "--cos_lr", "--meta_epochs", "3"],
        ["--grid", "cos_lr=false,true", "net", "--aed_meta_epochs", "2", "--meta_epochs", "3"],
        ["net", "--recipe", "stable", "--whiten", "0", "--pre_proj", "0"],  # its adaptor_lr is not the user's
        ["net", "--auto_noise", "0.25", "--noise_std", "0.015", "--embedding_size", "256"],  # as run.sh gives them
        ["net", "--dsc_layers", "1", "--dsc_hidden", "1024"],
        ["--feature_bank", "off", "net", "--train_backbone"],
    ],
)
def test_what_has_an_effect_or_is_always_given_is_accepted(caught_tasks, mvtec, words):
    words = [own for word in words for own in (SMALL_NET if word == "net" else [word])]
    assert caught_tasks([*words, "dataset", *SMALL_DATA, "--resize_mode", "square", "-d", "nut", "mvtec", mvtec])


def test_images_beside_a_table_are_drawn_and_changed(caught_tasks, mvtec, table):
    words = ["--save_segmentation_images", *PIXELS, "--token_size", "8"]
    data = [*SMALL_DATA, "--augment", "--bit_depth", "12", "-d", "nut", "mvtec", mvtec]
    assert caught_tasks([*words, "dataset", *data, "dataset", "--label", "sick", "table", table])


def test_the_command_line_of_a_run_is_tested_as_it_is(tmp_path, monkeypatch, mvtec):
    monkeypatch.chdir(tmp_path)
    words = ["--test", *SMALL_NET, "--aed_meta_epochs", "2", "dataset", *SMALL_DATA, "mvtec", mvtec]
    with pytest.raises((UsageError, DataError)) as caught:
        call(*words)
    assert "--test" in str(caught.value) and "no effect" not in str(caught.value)


def test_jobs_per_gpu_of_a_cluster_without_gpus():
    pytest.importorskip("ray")
    cluster = Cluster(SimpleNamespace(jobs_per_gpu=2, jobs=None), None)
    with pytest.raises(UsageError, match="--jobs_per_gpu needs a GPU, and the cluster has none: give --jobs"):
        cluster._divide({"CPU": 4.0}, 1)


def test_gpus_of_this_machine_and_a_cluster():
    run = SimpleNamespace(ray="auto", gpu=(0, 1), jobs=None, jobs_per_gpu=1)
    with pytest.raises(UsageError, match="--gpu names devices of this machine, and --ray auto uses its cluster's"):
        choose_cluster(run)


@pytest.mark.parametrize("style", ["csv", "markdown", "latex"])
def test_a_page_that_is_not_written(model, tmp_path, style):
    with pytest.raises(UsageError, match=f"--out names the page, which --format {style} does not write"):
        call("report", model.parents[2], "--format", style, "--out", tmp_path / "x.html")
    call("report", model.parents[2], "--format", style)
    assert not (tmp_path / "x.html").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--raw_format", "npy"], "--raw_format is of raw maps, and --map overlay writes none: give --map raw or both"),
        (["--raw_format", "tiff", "--map", "none"], "--raw_format is of raw maps, and --map none writes none"),
        (["--full_size", "--map", "none"], "--full_size is of maps, and --map none writes none"),
    ],
)
def test_maps_that_are_not_written(model, mvtec, tmp_path, words, message):
    with pytest.raises(UsageError, match=message):
        call("predict", model, mvtec / "nut/test/good", "--out", tmp_path / "p", *words)
    assert not (tmp_path / "p").exists()


def test_what_a_tables_model_has_no_use_for(tmp_path, table):
    call("--results_path", tmp_path / "results", *TABLES, "dataset", "--label", "sick", "table", table)
    own = next(tmp_path.rglob("checkpoint.safetensors")).parent
    given = [["--map", "overlay"], ["--map", "none"], ["--raw_format", "npy", "--map", "raw"], ["--full_size"]]
    given += [["--batch_size", "8"], ["--num_workers", "2"], ["--max_pixels", "9"]]
    for words in given:
        message = f"a model of a table, and .*{words[0]}.* is of images: leave it out"
        with pytest.raises(UsageError, match=message):
            call("predict", own, table, "--out", tmp_path / "p", *words)
    with pytest.raises(UsageError, match="--backbone_weights: the model has no backbone: leave it out"):
        call("predict", own, table, "--out", tmp_path / "p", "--backbone_weights", "random")
    assert not (tmp_path / "p").exists()
    assert call("predict", own, table, "--out", tmp_path / "p", "--threshold", "3") == 0


@pytest.mark.parametrize("command", ["predict", "export"])
def test_weights_of_a_backbone_that_the_model_holds(tmp_path, mvtec, command):
    words = [*SMALL_NET, "--train_backbone", "dataset", *SMALL_DATA, "-d", "nut", "mvtec", mvtec]
    call("--results_path", tmp_path / "results", "--feature_bank", "off", *words)
    own = next(tmp_path.rglob("checkpoint.safetensors")).parent
    words = [mvtec / "nut/test/good", "--out", tmp_path / "p"] if command == "predict" else ["--format", "torch_export"]
    with pytest.raises(UsageError, match="the model holds those of its backbone, which was trained: leave it out"):
        call(command, own, *words, "--backbone_weights", "random")
