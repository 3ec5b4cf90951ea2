"""Exported models: the same scores and maps as PyTorch, from pixels, at any batch size."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from conftest import ROOT, SMALL_DATA, SMALL_NET
from PIL import Image

import main
import simplenet
from datasets import DATASETS, read_image
from errors import DataError, UsageError
from experiment.use import export as export_module


def train(folder, mvtec, *net):
    words = ["--results_path", str(folder), "--precision", "fp32", *net, "dataset", *SMALL_DATA]
    main.main([*words, "-d", "bolt", "mvtec", str(mvtec)], standalone_mode=False)
    return folder / "project" / "group" / "test" / "models" / "0" / "mvtec_bolt"


def export(*words):
    main.main(["export", *map(str, words)], standalone_mode=False)


def pixels(mvtec):
    """What the network sees of the test images, as uint8 [B, 32, 32, 3]."""
    images = [read_image(sample.image_path) for sample in DATASETS["mvtec"].read_class(mvtec, "bolt").test]
    return np.stack([np.asarray(image.resize((40, 40), Image.Resampling.BILINEAR))[4:36, 4:36] for image in images])


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    """The model as ONNX, and what was made on the way: a trace, and its translation; tests must not change them."""
    made = SimpleNamespace(path=tmp_path_factory.mktemp("exported") / "m.onnx")

    def kept(name, function):
        def keep(*words, **options):
            setattr(made, name, function(*words, **options))
            return getattr(made, name)

        return keep

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_module, "_traced", kept("trace", export_module._traced))
        patch.setattr("torch.onnx.export", kept("graph", torch.onnx.export))
        export(model, "--out", made.path)
    return made


@pytest.fixture
def exported(made):
    """The model as ONNX; tests must not change it."""
    return made.path


@pytest.fixture
def known(made, monkeypatch):
    """Exports of the model begin with its trace and translation: what comes after them is what is tested."""
    monkeypatch.setattr(export_module, "_traced", lambda *_: made.trace)
    monkeypatch.setattr("torch.onnx.export", lambda *_, **__: made.graph)


@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_onnx_gives_the_predictions(model, exported, mvtec, tmp_path, capsys, kind):
    """One of the two in an older opset."""
    path = exported
    if kind == "float":
        path = tmp_path / "m.onnx"
        export(model, "--out", path, "--input", kind, "--opset", 17)
        assert [one.version for one in onnx.load(path).opset_import if not one.domain] == [17]
        assert float(capsys.readouterr().out.rsplit(" ", 1)[1]) < 1e-4
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    images = pixels(mvtec) if kind == "uint8" else (pixels(mvtec) / 255).astype(np.float32)
    expected = simplenet.load(model).predict([s.image_path for s in DATASETS["mvtec"].read_class(mvtec, "bolt").test])
    for batch in (slice(0, 1), slice(0, 4), slice(1, 4)):
        scores, maps = session.run(None, {"images": images[batch]})
        np.testing.assert_allclose(scores, expected.scores[batch], atol=1e-3)
        np.testing.assert_allclose(maps, expected.maps[batch], atol=1e-3)
    notes = session.get_modelmeta().custom_metadata_map
    thresholds = json.loads((model / "model.json").read_text())["thresholds"]
    assert float(notes["image_threshold"]) == thresholds["image"]
    assert float(notes["pixel_threshold"]) == thresholds["pixel"]
    bounds = json.loads(notes["brightness"])
    assert (list(bounds), list(bounds.values())) == (["lowest", "low", "high", "highest"], thresholds["brightness"])
    assert (notes["class"], notes["title"]) == ("bolt", "mvtec_bolt")
    assert kind in notes["input"]
    assert json.loads(notes["reading"]) == {"bit_depth": 16, "oriented": True, "background": "black"}


OTHERS = SMALL_NET[SMALL_NET.index("--backbone_weights") :]  # but the command, backbone and layers
VIT = [*"net -b vit_tiny_patch16_224 -le blocks.1 -le blocks.3".split(), *OTHERS]


@pytest.mark.parametrize(
    "net",
    [
        [*SMALL_NET, *"--train_backbone --patchsize 2 --pre_proj 2 --proj_layer_type 2 --dsc_layers 1".split()],
        [*VIT, "--target_embed_dimension", "24"],
    ],
    ids=["convolutions", "tokens"],
)
def test_every_kind_of_model_is_exported(mvtec, tmp_path, net, capsys):
    folder = train(tmp_path, mvtec, *net)
    capsys.readouterr()
    export(folder)
    assert (folder / "mvtec_bolt.onnx").is_file()
    assert float(capsys.readouterr().out.rsplit(" ", 1)[1]) < 1e-3


def test_half(model, exported, tmp_path):
    export(model, "--out", tmp_path / "half.onnx", "--half")
    assert (tmp_path / "half.onnx").stat().st_size < 0.7 * exported.stat().st_size
    images = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
    half, full = (
        onnxruntime.InferenceSession(path).run(None, {"images": images}) for path in (tmp_path / "half.onnx", exported)
    )
    assert half[0].dtype == np.float32
    np.testing.assert_allclose(half[0], full[0], atol=0.05)


def test_torch_export(model, mvtec, tmp_path):
    export(model, "--format", "torch_export", "--out", tmp_path / "m.pt2")
    notes = {"metadata.json": ""}
    loaded = torch.export.load(tmp_path / "m.pt2", extra_files=notes).module()
    assert json.loads(notes["metadata.json"])["class"] == "bolt"
    scores, maps = loaded(torch.from_numpy(pixels(mvtec)))
    expected = simplenet.load(model).predict([s.image_path for s in DATASETS["mvtec"].read_class(mvtec, "bolt").test])
    torch.testing.assert_close(scores, expected.scores, atol=1e-4, rtol=0)
    torch.testing.assert_close(maps, expected.maps, atol=1e-4, rtol=0)


def test_an_opset_that_cannot_be_had(model, known, tmp_path, capfd):
    with pytest.raises(UsageError, match=r"--opset 9: this model cannot be written in it, but in \d\d"):
        export(model, "--out", tmp_path / "m.onnx", "--opset", 9)
    with pytest.raises(UsageError, match="--opset is of ONNX, not of torch_export"):
        export(model, "--format", "torch_export", "--opset", "17")
    assert list(tmp_path.iterdir()) == []
    assert "opset" not in capfd.readouterr().err


@pytest.mark.parametrize("style", ["onnx", "torch_export"])
def test_a_file_of_the_users_is_not_replaced(model, exported, known, tmp_path, style):
    """An export is: the same command may be given again."""
    out = tmp_path / f"m{export_module.SUFFIXES[style]}"
    for content in (b"", b"mine"):
        out.write_bytes(content)
        with pytest.raises(UsageError, match="that file is there and no export of a model"):
            export(model, "--out", out, "--format", style)
        assert out.read_bytes() == content
    out.unlink()
    if style == "onnx":
        shutil.copy(exported, out)
    else:
        export(model, "--out", out, "--format", style)
    export(model, "--out", out, "--format", style)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


@pytest.mark.parametrize("step", ["load", "Exported", "_traced", "torch.export.export", "torch.onnx.export"])
def test_out_of_memory_is_one_line(model, request, tmp_path, monkeypatch, step):
    def full(*_, **__):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory")

    if step == "torch.onnx.export":
        request.getfixturevalue("known")
    monkeypatch.setattr(f"experiment.use.export.{step}", full)
    with pytest.raises(DataError, match=r"^out of memory: free some memory, or export where there is more$"):
        export(model, "--out", tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_computes_something_else_is_not_written(model, known, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "_difference", lambda *_: 0.01)
    with pytest.raises(DataError, match=r"differs from PyTorch by 0\.01, more than 0\.001: nothing was written"):
        export(model, "--out", tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_large_scores_may_differ_by_more():
    """As their rounding does; where no value is above 1, the difference itself counts."""
    small, large = torch.tensor([0.5, 0.2]), torch.tensor([30_000.0, 2.0])
    assert export_module._difference([small], [small + 0.002]) == pytest.approx(0.002, rel=1e-3)
    assert export_module._difference([small, large], [small, large + 30]) == pytest.approx(0.001)


def test_another_precision_is_said(model, known, tmp_path, capsys):
    trained = shutil.copytree(model, tmp_path / "model")
    description = json.loads((trained / "model.json").read_text())
    (trained / "model.json").write_text(json.dumps({**description, "precision": "bfloat16"}))
    export(trained, "--format", "torch_export", "--out", tmp_path / "m.pt2")
    assert "trained in bfloat16" in capsys.readouterr().err
    export(model, "--format", "torch_export", "--out", tmp_path / "m.pt2")
    assert "trained in" not in capsys.readouterr().err


def test_missing_packages_are_named(model, tmp_path, monkeypatch):
    find = export_module.importlib.util.find_spec
    monkeypatch.setattr(
        export_module.importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else find(name)
    )
    with pytest.raises(
        UsageError, match=r"needs onnx, onnxscript, onnxruntime: pip install -r requirements-export\.txt"
    ):
        export(model, "--out", tmp_path / "m.onnx")
    assert (ROOT / export_module.EXTRA).is_file()


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ("export {model} --out m.bin", 2, "--out m.bin: expected a name that ends in .onnx"),
        ("export {model} --out gone/m.onnx", 2, "--out gone/m.onnx: no folder 'gone'"),
        ("export nowhere", 2, "'nowhere' is not the folder of a model"),
        ("export {model} --format tflite", 2, "'tflite' is not one of"),
    ],
)
def test_mistakes(run_main, model, words, code, message):
    done = run_main(*words.format(model=model).split())
    assert done.returncode == code
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_script_of_the_docs_needs_onnx_runtime_alone(model, exported, mvtec, tmp_path):
    """The script of docs/models.md, in a process that cannot import torch or this project."""
    page = (ROOT / "docs" / "models.md").read_text()
    script = next(b.split("```")[0] for b in page.split("```python\n")[1:] if "onnxruntime" in b)
    shutil.copy(exported, tmp_path / "model.onnx")
    image = next((mvtec / "bolt" / "test").rglob("*.png"))
    (tmp_path / "script.py").write_text("import sys\nsys.modules['torch'] = None\n" + script)
    done = subprocess.run(
        [sys.executable, "script.py", "model.onnx", str(image)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    expected = pd.read_csv(model / "predictions.csv").set_index("image")["score"]
    name = Path(image).relative_to(mvtec).as_posix()
    assert float(done.stdout.split()[1].rstrip(",")) == pytest.approx(expected[name], abs=1e-3)
    assert len(script.strip().splitlines()) <= 15
