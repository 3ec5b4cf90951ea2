"""The chain around every detector that takes net's place: --test, predict, export, resume, grid and report."""

import json
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
from commands import stop_at_the_first_state
from conftest import SMALL, SMALL_DATA, SMALL_NET, small
from matplotlib.figure import Figure
from test_multimodal import write_table
from test_resume import begun, folder, outputs, start

import main
from datasets import read_image
from errors import DataError, UsageError
from experiment.machine import progress as bars
from experiment.use.export import Exported
from methods import DETECTORS, load
from options import declared

DATA = [*SMALL_DATA, "--resize_mode", "aspect", "--batch_size", "2"]  # rd would set both
CLAIMS = {  # what else than any option's model.json may say that is not so, and what is said then
    "cfa": [
        ("gamma_d", 0, "--gamma_d 0 must be from 1 to 1e+06"),
        ("gamma_d", 500, "must be from 1 to 80"),
        ("gamma_c", 60000, "leaves 0 centres"),
        ("k_nearest", 0, "must be 1 or more"),
        ("gamma_c", 2, "memory is torch.float32 [64, 6], not torch.float32 [6 to 32, 6]"),
    ],
    "rd": [
        ("blocks", 0, "--blocks 0 must be from 1 to 100"),
        ("blocks", 60000, "holds too little for {'blocks': 60000}"),
        ("blocks", 2, "does not fit"),
    ],
    "logicrd": [
        ("no_fcp", True, "does not fit"),
        ("no_mahalanobis", True, "does not fit"),
        ("no_gse", 1, "no_gse is 1"),
    ],
    "patchcore": [
        ("bank_size", 21, "bank.memory is torch.float32 [51, 16], not torch.float32 [21, 16]"),
        ("reweight", 52, "bank.memory is torch.float32 [51, 16], not torch.float32 [52 to"),
        ("whiten", 0.1, "weight is missing"),
    ],
    "reconpatch": [
        ("modulated_dim", 13, "does not fit"),
        ("rows", 1, "--rows 1 must be from 2 to 16384"),
        ("k_nearest", 300, "--k_nearest 300 needs steps of more patches: raise --rows to 600 or more"),
    ],
    "cpr": [
        ("codes", 0, "--codes 0 must be from 2 to 1000"),
        ("codes", 65, "--codes 65 are more than the 8 x 8 cells of layer1"),
        ("codes", 5, "does not fit"),
        ("region", 2, "--region 2 must be odd"),
        ("local_dim", 9, "does not fit"),
    ],
    "template": [
        ("window", 4, "--window 4 must be odd"),
        ("references", 0, "--references 0 must be from 1 to 10000"),
        ("score", "nearest", "references is missing"),
    ],
    "frequency": [
        ("sigma", 9.0, "--sigma 9 leaves nothing of images of 32 pixels, whose outer 18 do not count"),
        ("mode", "whiten", "strength is missing"),
    ],
    "lowrank": [
        ("rank", 3, "basis is torch.float32 [20, 32, 32], not torch.float32 [3, 32, 32]"),
        ("of", "rows", "--of rows must be one of training, image"),
    ],
    "gaussian": [
        ("of", "patches", "mean is torch.float32 [64, 12], not torch.float32 [1, 12]"),
        ("dimensions", 13, "chosen is torch.int64 [12], not torch.int64 [13]"),
        ("stride", 2, "mean is torch.float32 [64, 12], not torch.float32 [16, 12]"),
        ("choose", "largest", "directions is missing"),
        ("patchsize", 2, "mean is torch.float32 [64, 12], not torch.float32 [49, 12]"),
    ],
    "oneclass": [
        ("landmarks", 19, "centres is torch.float32 [20, 80], not torch.float32 [1 to 19, 80]"),
        ("machine", "svdd", "centres is torch.float32 [20, 80], not torch.float32 [1 to 1, 80]"),
        ("whiten", 0, "weight is torch.float32 [80, 80], not torch.float32 [80]"),
        ("nu", 0, "--nu 0 must be above 0 and at most 1"),
    ],
    "sparse": [
        ("atoms", 5, "dictionary is torch.float32 [8, 80], not torch.float32 [1 to 5, 80]"),
        ("brightness", True, "does not fit"),
        ("steps", 0, "--steps 0 must be from 1 to 1000"),
    ],
    "fastflow": [
        ("steps", 0, "--steps 0 must be from 1 to 100"),
        ("steps", 3, "does not fit"),
        ("hidden_ratio", 0.3, "does not fit"),
        ("norm", "row", "--norm row must be one of map, cell"),
    ],
    "msflow": [
        ("more_steps", 101, "--more_steps 101 must be from 0 to 100"),
        ("more_steps", 2, "does not fit"),
        ("position_dim", 8, "does not fit"),
        ("position_dim", 6, "--position_dim 6 must be a multiple of 4"),
    ],
    "multimodal": [
        ("heads", 3, "--dim 8 must be a multiple of --heads 3"),
        ("depth", 2, "does not fit"),
        ("part", 2, "no part 2 of 2"),
        ("schedule", "never", "--schedule never must be one of alternate, interleave"),
        ("columns", [[], [1, 1]], "does not fit"),
        ("columns", [[], ["1"]], "columns is [[], ['1']]"),
        ("columns", [[], [60000]], "at most 4096"),
    ],
}


SECOND = {"lr": "0.2", "whiten": "0.2", "score_pixels": "9", "dimensions": "6", "sparsity": "0.3"}  # of a grid


def chain(command, mvtec, *net, data=()):
    return [*small(command), *net, "dataset", *DATA, *data, "mvtec", str(mvtec)]


JOINT = {"multimodal": ["--dropout", "0.1"]}  # what learns from a table too, and what is random in that


def joint_chain(command, mvtec, *net, data=(), tables):
    """With a table beside the images for a detector that takes both."""
    words = chain(command, mvtec, *JOINT.get(command, []), *net, data=data)
    if command not in JOINT:
        return words
    return [*words, "dataset", "--num_workers", "0", "--label", "sick", "table", tables / "records.csv"]


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    return write_table(tmp_path_factory.mktemp("tables") / "records.csv").parent


def varied(command):
    """An option of a detector that leaves its features alone, its value in the smallest setting, and twice that."""
    numbers = [own for own in declared(DETECTORS[command].Options) if own.kind in (int, float)]
    free = [own for own in numbers if not own.option.decides_features and own.default and own.name != "epochs"]
    option = next((own for own in free if own.option.counts), free[0])
    value = smallest(command, option)
    return option.name, str(option.kind(value)), str(2 * option.kind(value))


def smallest(command, option):
    """The value of an option in a detector's smallest setting."""
    words = SMALL[command].split()
    return words[words.index(f"--{option.name}") + 1] if f"--{option.name}" in words else str(option.default)


def call(*words):
    return main.main([str(word) for word in words], standalone_mode=False)


@pytest.fixture(scope="module", params=[name for name in SMALL if name != "net"])
def command(request):
    return request.param


FULL = ["--precision", "fp32"]


@pytest.fixture(scope="module")
def run(command, mvtec, tmp_path_factory):
    """A finished run over both classes, whose bars came to their ends; tests must not change it."""
    where, made, make = tmp_path_factory.mktemp(command), [], bars._make_bar
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bars, "_make_bar", lambda *words, **given: made.append(make(*words, **given)) or made[-1])
        call("--results_path", where / "results", *FULL, *chain(command, mvtec))
    assert [(bar.desc, bar.n) for bar in made] == [(bar.desc, bar.total) for bar in made]
    return folder(where)


@pytest.fixture(scope="module")
def joint(command, run, mvtec, tables, tmp_path_factory):
    """The same, or of a detector that takes tables too one with a table; its words behind it."""
    words = [*FULL, *joint_chain(command, mvtec, tables=tables)]
    if command not in JOINT:
        return run, words
    where = tmp_path_factory.mktemp("joint")
    call("--results_path", where / "results", *words)
    return folder(where), words


def test_every_detector_is_here():
    assert set(SMALL) == set(DETECTORS)


def test_test_gives_the_same_bytes(run_main, joint, tmp_path, mvtec, command, tables):
    run, words = joint
    shutil.copytree(run, folder(tmp_path))
    done = run_main("--test", "--save_segmentation_images", *words)
    assert done.returncode == 0, done.stderr
    assert outputs(folder(tmp_path)) == outputs(run)
    option, default, other = varied(command)
    foreign = run_main("--test", *FULL, *joint_chain(command, mvtec, f"--{option}", other, tables=tables))
    assert foreign.returncode == 2
    assert f"trained with options.{option} {default}, not {other}" in foreign.stderr


def test_predict_gives_the_scores_of_the_run(run, tmp_path, mvtec):
    model = run / "models/0/mvtec_bolt"
    assert call("predict", model, mvtec / "bolt/test", "--out", tmp_path / "p", "--map", "both") == 0
    found = pd.read_csv(tmp_path / "p/predictions.csv")
    expected = pd.read_csv(model / "predictions.csv")
    scores = {Path(path).parts[-2:]: score for path, score in zip(found["path"], found["score"], strict=True)}
    for image, score in zip(expected["image"], expected["score"], strict=True):
        assert scores[Path(image).parts[-2:]] == pytest.approx(score, rel=1e-5)
    assert len(list((tmp_path / "p").rglob("*.npy"))) == 4


def pixels_and_predictions(trained, of_class):
    """The test images as an export takes them, uint8 [B, 32, 32, 3], and what the model says of them."""
    paths = sorted(of_class.glob("test/*/*.png"))
    pixels = np.stack([trained.transform.pixels(read_image(path)).permute(1, 2, 0) for path in paths])
    return pixels, trained.predict(paths)


def exported(path):
    """What an exported model says of pixels."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {"images": pixels})


def test_exports_give_the_predictions(run, tmp_path, mvtec, capsys):
    """As ONNX, and in half precision as what is traced for it; or the detector says why not."""
    model, out = run / "models/0/mvtec_bolt", tmp_path / "m.onnx"
    words = ["export", model, "--out", out]
    trained = load(model)
    if why := trained.detector.not_exported:
        with pytest.raises(UsageError, match=re.escape(f"cannot be exported ({why}): use predict")):
            call(*words)
        return
    call(*words)
    images, expected = pixels_and_predictions(trained, mvtec / "bolt")
    assert float(capsys.readouterr().out.rsplit(" ", 1)[1]) < 1e-3
    predict = exported(out)
    for batch in (slice(0, 1), slice(0, 4)):
        scores, maps = predict(images[batch])
        np.testing.assert_allclose(scores, expected.scores[batch], atol=1e-3)
        np.testing.assert_allclose(maps, expected.maps[batch], atol=1e-3)
    scale = max(1, expected.scores.std().item())  # scores may be in units of a small deviation
    with torch.no_grad():
        scores, maps = Exported(trained, half=True)(torch.from_numpy(images))
    assert scores.dtype == maps.dtype == torch.float32
    np.testing.assert_allclose(scores, expected.scores, atol=0.05 * scale)
    np.testing.assert_allclose(maps, expected.maps, atol=0.05)


def test_a_killed_run_goes_on_to_the_same_bytes(run_main, joint, tmp_path):
    """Killed at its first state; at any other moment in test_resume.py."""
    run, words = joint
    process = start(tmp_path, words, before=stop_at_the_first_state)
    begun(folder(tmp_path), process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    done = run_main(*words)
    assert done.returncode == 0, done.stderr
    assert outputs(folder(tmp_path)) == outputs(run)


def test_a_grid_embeds_once_and_every_point_is_a_run_of_its_own(run, tmp_path, mvtec, monkeypatch, embedded, command):
    monkeypatch.chdir(tmp_path)
    option, value, _ = varied(command)
    own = {own.name: own for own in declared(DETECTORS[command].Options)}
    second, other = next(pair for pair in SECOND.items() if pair[0] in own)
    own_value = smallest(command, own[second])
    grid = ["--grid", f"{option}={value}", "--grid", f"{second}={other},{own_value}"]
    classes = ["bolt", "nut"] if command in JOINT else ["bolt"]  # that one learns from both
    call(*FULL, *grid, *chain(command, mvtec, data=[f"-d{name}" for name in classes]))
    assert embedded == [f"mvtec_{name}" for name in classes]
    one, two = (folder(tmp_path) / f"{option}={value},{second}={own}" for own in (other, own_value))
    model = Path("models/0/mvtec_bolt")
    assert outputs(two / model) == outputs(run / model)
    assert outputs(one / model) != outputs(run / model)


@pytest.fixture(scope="module")
def of_simplenet(mvtec, tmp_path_factory):
    """A finished run of net; tests must not change it."""
    where = tmp_path_factory.mktemp("net")
    call("--results_path", where / "results", *SMALL_NET, "dataset", *SMALL_DATA, "mvtec", mvtec)
    return folder(where)


def test_report_compares_it_with_simplenet(run, of_simplenet, tmp_path, command, monkeypatch):
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)  # test_report.py looks at drawn charts
    call("report", run, of_simplenet, "--out", tmp_path / "report.html")
    assert varied(command)[0] in (tmp_path / "report.html").read_text()


def test_what_a_description_claims_is_checked(run, tmp_path, command):
    model = shutil.copytree(run / "models/0/mvtec_bolt", tmp_path / "model")
    written = (model / "model.json").read_text()
    number = next(own.name for own in declared(DETECTORS[command].Options) if own.kind is int)
    general = [(number, "1", f"{number} is '1'"), ("gone", 4, "options that do not exist: gone")]
    for option, value, words in [*general, *CLAIMS.get(command, [])]:
        description = json.loads(written)
        description["options"][option] = value
        (model / "model.json").write_text(json.dumps(description))
        with pytest.raises((UsageError, DataError)) as caught:
            load(model)
        assert words in str(caught.value)


def test_a_foreign_option_is_refused(run_main, mvtec, command):
    done = run_main("--grid", "dsc_hidden=1,2", *chain(command, mvtec))
    assert done.returncode == 2
    assert "'dsc_hidden' is no option of the commands given" in done.stderr
    assert done.stderr.count("\n") == 1
