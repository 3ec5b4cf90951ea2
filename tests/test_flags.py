"""Every flag of the command line does something that can be seen; a new flag fails here until it has a test."""

import json
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import SMALL, SMALL_CFA, SMALL_DATA, SMALL_NET, small

import backbones
import main
from datasets import AUGMENT, ImageTransform, read_image
from errors import UsageError
from experiment.detector_config import parse_backbones
from experiment.machine.device import choose_device
from methods import DETECTORS
from options import as_flags, declared

RUN = {
    "--results_path": "elsewhere",
    "--log_project": "elsewhere",
    "--log_group": "elsewhere",
    "--run_name": "elsewhere",
    "--seed": "3",
}
NET = {
    "--layers_to_extract_from": ["-le", "layer3"],
    "--pretrain_embed_dimension": ["--pretrain_embed_dimension", "12"],
    "--target_embed_dimension": ["--target_embed_dimension", "12"],
    "--patchsize": ["--patchsize", "5"],
    "--meta_epochs": ["--meta_epochs", "2"],
    "--gan_epochs": ["--gan_epochs", "2"],
    "--dsc_layers": ["--dsc_layers", "3"],
    "--dsc_hidden": ["--dsc_hidden", "7"],
    "--noise_std": ["--noise_std", "0.5"],
    "--dsc_margin": ["--dsc_margin", "0.2"],
    "--dsc_lr": ["--dsc_lr", "0.01"],
    "--auto_noise": ["--auto_noise", "0.5"],
    "--train_backbone": ["--train_backbone"],
    "--pre_proj": ["--pre_proj", "2"],
    "--mix_noise": ["--mix_noise", "3"],
    "--recipe": ["--recipe", "stable"],
    "--difference_noise": ["--difference_noise", "0.5"],
    "--whiten": ["--whiten", "0.1"],
    "--memory": ["--memory", "20"],
    "--adaptor_lr": ["--adaptor_lr", "0.01"],
    "--ensemble": ["--ensemble", "2"],
    "--ema": ["--ema", "0.9"],
    "--warm_up_cosine": ["--warm_up_cosine"],
    "--score_top_k": ["--score_top_k", "5"],
    "--align_maps": ["--align_maps"],
    "--match_light": ["--match_light", "gain"],
}
CFA = {
    "--gamma_d": ["--gamma_d", "6"],
    "--gamma_c": ["--gamma_c", "2"],
    "--k_nearest": ["--k_nearest", "2"],
    "--j_hard": ["--j_hard", "5"],
    "--radius": ["--radius", "0.1"],
    "--alpha": ["--alpha", "0.07"],
    "--nu": ["--nu", "10"],
    "--lr": ["--lr", "0.01"],
    "--weight_decay": ["--weight_decay", "0.5"],
    "--epochs": ["--epochs", "3"],
    "--align_maps": ["--align_maps"],
    "--whiten": ["--whiten", "0.1"],
    "--layers_to_extract_from": ["-le", "layer3"],
}
RD = {
    "--align_maps": ["--align_maps"],
    "--blocks": ["--blocks", "2"],
    "--lr": ["--lr", "0.001"],
    "--epochs": ["--epochs", "3"],
    "--layers_to_extract_from": ["-le", "layer2.0"],
}
LOGICRD = RD | {flag: [flag] for flag in ("--no_gse", "--no_fcp", "--no_nii", "--no_mahalanobis")}
MULTIMODAL = {
    "--align_maps": ["--align_maps"],
    "--dim": ["--dim", "12"],
    "--depth": ["--depth", "2"],
    "--heads": ["--heads", "4"],
    "--dropout": ["--dropout", "0.5"],
    "--lr": ["--lr", "0.1"],
    "--epochs": ["--epochs", "3"],
    "--layers_to_extract_from": ["-le", "layer1.0"],
}
RECONPATCH = {
    "--percentage": ["--percentage", "0.2"],
    "--bank_size": ["--bank_size", "12", "--percentage", "0.01"],
    "--sampler": ["--sampler", "random"],
    "--rows": ["--rows", "100"],
    "--epochs": ["--epochs", "3"],
    "--modulated_dim": ["--modulated_dim", "7"],
    "--projected_dim": ["--projected_dim", "5"],
}
CPR = {
    "--references": ["--references", "1"],
    "--region": ["--region", "1"],
    "--stem": ["--stem", "6"],
    "--width": ["--width", "6"],
    "--local_dim": ["--local_dim", "6"],
    "--pairs": ["--pairs", "30"],
    "--lr": ["--lr", "0.01"],
    "--epochs": ["--epochs", "3"],
}
TEMPLATE = {
    "--align": ["--align", "affine"],
    "--references": ["--references", "1", "--score", "nearest"],
    "--window": ["--window", "5", "--score", "correlation"],
}
FREQUENCY = {"--mode": ["--mode", "notch"], "--k": ["--k", "1", "--mode", "notch"], "--damp": ["--damp", "1"]}
LOWRANK = {
    "--rank": ["--rank", "1"],
    "--weight": ["--weight", "0.5", "--of", "image"],
    "--side": ["--side", "16", "--of", "image"],
}
DATASET = {
    "--train_val_split": ["--train_val_split", "0.6"],
    "--shots": ["--shots", "2"],
    "--contamination": ["--contamination", "25"],
    "--batch_size": ["--batch_size", "4"],
    "--resize": ["--resize", "48"],
    "--imagesize": ["--imagesize", "40"],
    "--resize_mode": ["--resize_mode", "square"],
    "--rotate_degrees": ["--rotate_degrees", "30"],
    "--translate": ["--translate", "0.3"],
    "--scale": ["--scale", "0.4"],
    "--brightness": ["--brightness", "0.9"],
    "--contrast": ["--contrast", "0.9"],
    "--saturation": ["--saturation", "0.9"],
    "--gray": ["--gray", "1"],
    "--hflip": ["--hflip", "1"],
    "--vflip": ["--vflip", "1"],
    "--augment": ["--augment"],
    "--draw_once": ["--draw_once", "--brightness", "0.9"],
}
WIDE_CFA = [*SMALL_CFA, "--radius", "0.3", "--alpha", "0.01"]  # repulsion acts on some patches and not on others
ALONE = {  # options of commands outside the chain, tested in test_report.py, test_figure.py, test_predict.py and so on
    "--format",
    "--best_epoch",
    "--compare",
    "--bad",
    "--contours",
    "--false_alarms",
    "--min_area",
    "--pixel_threshold",
    "--region_masks",
    "--regions",
    "--ranks",
    "--cost",
    "--class",
    "--out",
    "--map",
    "--raw_format",
    "--full_size",
    "--threshold",
    "--half",
    "--input",
    "--opset",
    "--debug",  # in test_cli
    "--images",  # these in test_distill; of figures in test_figure
    "--steps",
    "--crops",
    "--watch",  # these in test_watch and test_serve
    "--stream",
    "--latency",
    "--warm_up",
    "--host",
    "--port",
    "--folder",
    "--max_upload",
    "--max_images",
}
ELSEWHERE = {  # flags whose effect is tested by name below, or in test_cli, test_resume, test_grid and so on
    "--precision",
    "--feature_bank",
    "--eval_every",
    "--threshold_quantile",
    "--calibrate",  # in test_alarms
    "--one_model",  # in test_one_model
    "--test",
    "--save_segmentation_images",
    "--on_error",
    "--overwrite",
    "--grid",
    "--as",  # in test_chain
    "--jobs",
    "--jobs_per_gpu",
    "--ray",
    "--gpu",
    "--backbone_names",
    "--embedding_size",
    "--aed_meta_epochs",
    "--cos_lr",
    "--proj_layer_type",
    "--backbone_weights",
    "--normalisation",  # this one in test_normalisation
    "--num_workers",
    "--mask_of_interest",  # in test_interest
    "--bit_depth",  # these in test_reading
    "--max_pixels",
    "--tile",  # these in test_tiles
    "--overlap",
    "--skip_empty_tiles",
    "--subdatasets",
    "--normal_dir",
    "--normal_test_dir",
    "--abnormal_dir",
    "--mask_dir",
    "--n_train",  # these in test_assembly
    "--n_test",
    "--dataset_seed",
    "--label",  # these in test_table and test_multimodal
    "--test_file",
    "--split_seed",
    "--image_tokens",
    "--token_size",
    "--schedule",
    "--patience",
    "--texture_dir",  # these in test_cpr
    "--kind",
    "--teacher",  # these in test_efficientad
    "--penalty_images",
    "--padding",
    "--ensemble",  # of net above, of several backbones in test_ensemble
    "--distance",  # these in test_compared
    "--bank_size",
}


def another(own):
    """The words that give an option another value than its default."""
    flag = f"--{own.name}"
    if own.kind is bool:
        return [flag]
    if own.choices:
        return [flag, next(choice for choice in own.choices if choice != own.default)]
    value = own.default or 1
    return [flag, str(next(new for new in (value + 1, value / 2, value) if own.fits(own.kind(new))))]


def changes(command, chosen):
    """Words for every option of a detector that is not tested elsewhere: those chosen, else any that it takes."""
    options = declared(DETECTORS[command].Options)
    return {f"--{own.name}": another(own) for own in options if f"--{own.name}" not in ELSEWHERE} | chosen


PATCHCORE = {  # no share beside what says how many in another way
    "--bank_size": ["--bank_size", "9", "--percentage", "0.1"],
    "--sampler": ["--sampler", "identity", "--percentage", "0.1"],
}
GAUSSIAN = {
    "--shrinkage": ["--shrinkage", "ledoit_wolf", "--eps", "0.01"],
    "--components": ["--components", "2", "--of", "patches", "--eps", "0.01"],
}
ONECLASS = {"--machine": ["--machine", "gaussian", "--landmarks", "500"]}
FASTFLOW = {
    "--steps": ["--steps", "3"],
    "--hidden_ratio": ["--hidden_ratio", "0.3"],
    "--score_top_k": ["--score_top_k", "5"],
    "--lr": ["--lr", "0.01"],
    "--weight_decay": ["--weight_decay", "0.5"],
    "--epochs": ["--epochs", "3"],
}
MSFLOW = {
    "--steps": ["--steps", "2"],
    "--more_steps": ["--more_steps", "0"],
    "--position_dim": ["--position_dim", "8"],
    "--lr": ["--lr", "0.01"],
    "--epochs": ["--epochs", "3"],
}
CHOSEN = {
    "cfa": CFA,
    "efficientad": {"--width": ["--width", "0.05"], "--lr": ["--lr", "0.001"]},
    "rd": RD,
    "logicrd": LOGICRD,
    "patchcore": PATCHCORE,
    "reconpatch": RECONPATCH,
    "cpr": CPR,
    "template": TEMPLATE,
    "frequency": FREQUENCY,
    "lowrank": LOWRANK,
    "gaussian": GAUSSIAN,
    "oneclass": ONECLASS,
    "fastflow": FASTFLOW,
    "msflow": MSFLOW,
    "multimodal": MULTIMODAL,
}
BASES = {"cfa": WIDE_CFA, "sparse": [*small("sparse"), "--score", "one_sided"]}  # where every flag changes something
OTHERS = {
    command: (BASES.get(command, small(command)), changes(command, CHOSEN.get(command, {})))
    for command in SMALL
    if command != "net"
}


def test_every_flag_is_tested():
    commands = [main.main, *(main.main.get_command(None, name) for name in main.main.list_commands(None))]
    declared = {p.opts[0] if p.opts[0].startswith("--") else p.opts[-1] for c in commands for p in c.params}
    flags = {name for name in declared if name.startswith("--")}
    assert flags == {*RUN, *NET, *DATASET, *ALONE, *ELSEWHERE}.union(*(own for _, own in OTHERS.values()))


@pytest.fixture(scope="module")
def run(mvtec, tmp_path_factory):
    """Run a small chain in this process; the folder of its model."""

    def go(net=(), data=(), run=(), detector=SMALL_NET):
        results = tmp_path_factory.mktemp("results")
        words = ["--results_path", str(results), *run, *detector, *net, "dataset", *SMALL_DATA, "-d", "bolt", *data]
        main.main([*words, "mvtec", str(mvtec)], standalone_mode=False)
        return next(results.rglob("mvtec_bolt"))

    return go


def scores(folder: Path) -> list[float]:
    return pd.read_csv(folder / "predictions.csv")["score"].tolist()


@pytest.fixture(scope="module")
def base(run):
    return scores(run())


@pytest.mark.parametrize("flag", NET)
def test_net_flag_changes_the_scores(run, base, flag):
    assert scores(run(net=NET[flag])) != base


@pytest.fixture(scope="module")
def scores_by(mvtec):
    """The scores of a class's test images by a detector, said as on the command line and fitted here."""
    transform = ImageTransform(40, 32)
    train, test = (
        torch.stack([transform.image(read_image(path)) for path in sorted(mvtec.glob(f"bolt/{own}"))])
        for own in ("train/good/*.png", "test/*/*.png")
    )

    @cache
    def score(command, words):
        own = main.main.get_command(None, command)
        config = own.invoke(own.make_context(command, list(words)))[0]
        (backbone,), kind = config.backbones, DETECTORS[command].variant(config.options)
        joint = {"columns": [[]]} if kind.JOINT else {}
        source = backbones.load(backbone.name, config.backbone_weights)
        detector = kind(source, backbone.layers, (32, 32), **config.options, **joint)
        detector.fit(train.split(2))
        return detector.predict(test).scores.tolist()

    return score


@pytest.mark.parametrize(("command", "flag"), [(command, flag) for command in OTHERS for flag in OTHERS[command][1]])
def test_another_detectors_flag_changes_the_scores(scores_by, command, flag):
    (_, *words), flags = OTHERS[command]
    assert scores_by(command, (*words, *flags[flag])) != scores_by(command, tuple(words))


@pytest.mark.parametrize("flag", DATASET)
def test_dataset_flag_changes_the_scores(run, base, flag):
    assert scores(run(data=DATASET[flag])) != base


def test_seed_changes_the_scores(run, base):
    assert scores(run(run=["--seed", RUN["--seed"]])) != base
    assert scores(run()) == base


def test_workers_change_nothing_but_the_time(run, base):
    assert scores(run(data=["--num_workers", "2"])) == base


def test_embedding_size_is_accepted_and_ignored(run, base):
    assert scores(run(net=["--embedding_size", "77"])) == base


def test_cos_lr_and_what_it_leaves_out(run):
    epochs = ["--meta_epochs", "4", "--gan_epochs", "2"]
    constant = scores(run(net=epochs))
    cosine = scores(run(net=[*epochs, "--cos_lr"]))
    later = scores(run(net=[*epochs, "--cos_lr", "--aed_meta_epochs", "2"]))
    assert len({tuple(s) for s in (constant, cosine, later)}) == 3


def test_proj_layer_type(run):
    two = ["--pre_proj", "2"]
    linear, same, activated = (scores(run(net=[*two, "--proj_layer_type", t])) for t in "012")
    assert linear == same != activated


def test_augment_is_a_preset_that_flags_override(run):
    """With every change of the preset switched off again, --augment is no change at all."""
    off = [word for name in AUGMENT for word in (f"--{name}", "0")]
    config = json.loads((run(data=["--augment", *off]).parents[2] / "config.json").read_text())
    assert set(config["dataset"]["random"].values()) == {0}  # draw_once too
    config = json.loads((run(data=["--augment", "--scale", "0.3"]).parents[2] / "config.json").read_text())
    assert {k: v for k, v in config["dataset"]["random"].items() if v} == {**AUGMENT, "scale": 0.3}


def test_a_recipe_sets_options_of_data_that_flags_override(run, capsys):
    for data, expected in ([], {"brightness": 0.3, "draw_once": True}), (["--brightness", "0"], {"draw_once": True}):
        path = run(net=["--recipe", "memory", "--memory", "4", "--bank_size", "8"], data=data)
        changed = json.loads((path.parents[2] / "config.json").read_text())["dataset"]["random"]
        assert {name: value for name, value in changed.items() if value} == expected
        said = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("Recipe memory: "))
        assert said.endswith(f" dataset {as_flags(expected)}")


def test_a_name_that_occurs_again_shows_its_layers():
    backbones = parse_backbones(["a", "b", "a"], ["0.x", "1.x", "2.x", "2.y"])
    assert [backbone.label for backbone in backbones] == ["a x", "b", "a x+y"]


@pytest.mark.parametrize(
    ("seeds", "names", "words"),
    [
        (["--seed", "1", "--seed", "1"], ["resnet18"], "a --seed is given twice in 1, 1"),
        (["--seed", "1", "--seed", "2"], ["resnet18.seed-7"], "resnet18.seed-7 has a seed of its own"),
    ],
)
def test_bad_seeds(run, seeds, names, words):
    with pytest.raises(UsageError, match=words):
        main.main(
            [*seeds, "net", "-b", *names, "-le", "layer1", "dataset", "mvtec", "x"],
            standalone_mode=False,
        )


def test_where_results_go(run):
    folder = run(run=["--log_project", "p", "--log_group", "g", "--run_name", "r"])
    assert folder.parts[-6:] == ("p", "g", "r", "models", "0", "mvtec_bolt")


def test_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"GPU {'AB'[i]}")
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *a, **k: None)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    assert choose_device((1, 0)) == torch.device("cuda", 1)
    assert not torch.utils.deterministic.fill_uninitialized_memory
    with pytest.raises(UsageError, match=r"--gpu 2 does not exist: this machine has 0 \(GPU A\), 1 \(GPU B\)"):
        choose_device((0, 2))


def test_layers_of_several_backbones():
    first, second = parse_backbones(["resnet18", "vit_small.seed-7"], ["0.layer2", "1.blocks.3", "0.layer3"])
    assert (first.name, first.layers, first.seed) == ("resnet18", ("layer2", "layer3"), None)
    assert (second.label, second.name, second.layers, second.seed) == (
        "vit_small.seed-7",
        "vit_small",
        ("blocks.3",),
        7,
    )


@pytest.mark.parametrize(
    ("names", "layers", "words"),
    [
        ([], ["layer2"], "-b wideresnet50"),
        (["a", "b"], ["layer2"], "write INDEX.LAYER, such as 0.layer2, with an index from 0 to 1"),
        (["a", "b"], ["2.layer2"], "-le 2.layer2"),
        (["a.seed-x"], ["layer2"], "whole number from 0 to 4294967295 after .seed-"),
        (["a"], ["layer2", "layer2"], "given twice"),
        (["a", "a"], ["0.layer2", "1.layer2"], "the same backbone with the same layers is given twice"),
    ],
)
def test_bad_backbone_lists(names, layers, words):
    with pytest.raises(UsageError, match=words):
        parse_backbones(names, layers)
