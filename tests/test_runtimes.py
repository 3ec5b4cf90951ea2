"""Exports in other runtimes than ONNX Runtime's Python: OpenVINO, and the C++ example; skipped where these are not."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pages
import pytest
from conftest import ROOT, SMALL_DATA, small
from PIL import Image

import main
from experiment.use.export import BOUND
from methods import load

DOCS = ROOT / "docs" / "models.md"
HEADER = "onnxruntime_cxx_api.h"


def exported(model, folder):
    """The model and its ONNX file, in a folder."""
    main.main(["export", str(model), "--out", str(folder / "model.onnx")], standalone_mode=False)
    return model, folder / "model.onnx"


@pytest.fixture(scope="module")
def net(model, tmp_path_factory):
    return exported(model, tmp_path_factory.mktemp("net"))


@pytest.fixture(scope="module")
def patchcore(mvtec, tmp_path_factory):
    folder = tmp_path_factory.mktemp("patchcore")
    words = ["--results_path", str(folder), "--precision", "fp32", *small("patchcore"), "dataset", *SMALL_DATA]
    main.main([*words, "-d", "bolt", "mvtec", str(mvtec)], standalone_mode=False)
    return exported(folder / "project/group/test/models/0/mvtec_bolt", folder)


@pytest.mark.parametrize("kind", ["net", "patchcore"])
def test_openvino_gives_the_predictions(kind, mvtec, request, monkeypatch):
    """By the script of the docs, as near as an export promises to be to PyTorch, one image or several at once."""
    pytest.importorskip("openvino")
    model, path = request.getfixturevalue(kind)
    trained, images = load(model), sorted((mvtec / "bolt" / "test").rglob("*.png"))
    pixels = np.stack([trained.transform.pixels(Image.open(image)).permute(1, 2, 0) for image in images])
    script = next(block for block in pages.blocks(DOCS) if "import openvino" in block.lines)
    monkeypatch.chdir(path.parent)
    expected = trained.predict(images)
    for batch in (slice(0, 1), slice(0, 4)):
        said = {"pixels": pixels[batch]}
        exec("\n".join(script.lines), said)
        for name in ("scores", "maps"):
            wanted = getattr(expected, name)[batch].numpy()
            assert np.abs(said[name] - wanted).max() <= BOUND * max(1, np.abs(wanted).max())


def places():
    """Folders that may hold ONNX Runtime's headers and library."""
    if root := os.environ.get("ONNXRUNTIME_ROOT"):
        yield Path(root) / "include", Path(root) / "lib"
    if shutil.which("pkg-config"):
        asked = ["pkg-config", "--variable=includedir", "--variable=libdir", "libonnxruntime"]
        done = subprocess.run(asked, capture_output=True, text=True)
        if done.returncode == 0:
            include, library = map(Path, done.stdout.split())
            yield include, library
            yield include / "onnxruntime", library
    for prefix in ("/usr", "/usr/local"):
        yield Path(prefix, "include/onnxruntime"), Path(prefix, "lib")


@pytest.fixture(scope="module")
def commands():
    """The docs' command lines that compile and run the example."""
    return next(block.commands for block in pages.blocks(DOCS) if any("g++" in line for line in block.lines))


@pytest.fixture(scope="module")
def example(request, commands, tmp_path_factory):
    """Runs the example on an image, in a folder with the model; with the wheel's library where headers come alone."""
    if not shutil.which("g++"):
        pytest.skip("no C++ compiler: g++ is not installed")
    include, library = next((own for own in places() if (own[0] / HEADER).is_file()), (None, None))
    if include is None:
        pytest.skip(f"no {HEADER}: set ONNXRUNTIME_ROOT to an unpacked release of ONNX Runtime, or install its headers")
    folder = tmp_path_factory.mktemp("cpp")
    (folder / "ort" / "lib").mkdir(parents=True)
    (folder / "ort" / "include").symlink_to(include)
    wheel = sorted((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so*"))
    own = library / "libonnxruntime.so"
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (folder / "ort" / "lib" / name).symlink_to(own.resolve() if own.exists() else wheel[0])
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "model.onnx").symlink_to(request.getfixturevalue("net")[1])
    env = {**os.environ, "ONNXRUNTIME_ROOT": str(folder / "ort")}
    compile_it, run_it = commands

    def run(command):
        return subprocess.run(["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True)

    done = run(f"{compile_it} -Wall -Wextra -Werror")
    assert done.returncode == 0, done.stderr

    def predict(image):
        if isinstance(image, bytes):
            (folder / "photo.ppm").write_bytes(image)
        else:
            image.save(folder / "photo.ppm")
        return run(run_it)

    return predict


@pytest.mark.parametrize("size", [(32, 32), (97, 131), (640, 40)])
def test_the_cpp_example_gives_the_predictions(example, model, tmp_path, size):
    """Of images of other sizes too, which it resizes and crops; random pixels are all different."""
    image = Image.fromarray(np.random.default_rng(size[0]).integers(60, 120, (*size, 3), dtype=np.uint8))
    image.save(tmp_path / "a.png")
    trained = load(model)
    expected = trained.predict([tmp_path / "a.png"]).scores.item()
    done = example(image)
    assert done.returncode == 0, done.stderr
    word, score, decision = done.stdout.split()
    assert (word, decision) == ("score", "anomalous" if expected > trained.thresholds.image else "normal")
    assert float(score.rstrip(",")) == pytest.approx(expected, abs=BOUND)
    assert not done.stderr


def test_the_cpp_example_says_what_is_wrong(example):
    done = example(Image.new("RGB", (48, 48)))
    assert (done.returncode, done.stderr) == (
        0,
        "Darker than the images that the threshold comes from: it promises nothing\n",
    )
    for content, said in (
        (b"P5\n2 2\n255\n....", "photo.ppm is no binary PPM file (P6) of 8 bits"),
        (b"P6\n# two by two\n2 2\n255\n...", "photo.ppm ends before its last pixel"),
    ):
        done = example(content)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", f"Error: {said}\n")
