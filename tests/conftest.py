"""Small MVTec-like trees, and main.py run as a user runs it."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a test per core: threads would wait for each other
os.environ.update(RAY_memory_monitor_refresh_ms="0")  # what else runs here must not end a worker of a test
os.environ.update(RAY_worker_niceness="0")  # by 15, its default, workers would wait for all other tests
os.environ["HF_HUB_OFFLINE"] = "1"  # no test may reach for a hub: a download fails at once
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import commands
import numpy as np
import pytest
from commands import ROOT
from PIL import Image


def make_mvtec(
    root: Path, classes: Sequence[str] = ("bolt", "nut"), size: int = 48, train: int = 4, test: int = 2
) -> Path:
    """An MVTec-layout tree: textured normal images, and bright squares as defects with their masks."""
    for k, name in enumerate(classes):
        rng = np.random.default_rng(k)

        def texture(rng: np.random.Generator = rng) -> np.ndarray:
            small = rng.integers(60, 120, (size // 4, size // 4, 3)).repeat(4, axis=0).repeat(4, axis=1)
            return small.astype(np.uint8)

        def save(path: Path, pixels: np.ndarray) -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)

        for i in range(train):
            save(root / name / "train" / "good" / f"{i:03}.png", texture())
        for i in range(test):
            save(root / name / "test" / "good" / f"{i:03}.png", texture())
            pixels, mask = texture(), np.zeros((size, size), np.uint8)
            area = slice(size // 3 + i, size // 3 + i + size // 6)
            pixels[area, area], mask[area, area] = 250, 255
            save(root / name / "test" / "crack" / f"{i:03}.png", pixels)
            save(root / name / "ground_truth" / "crack" / f"{i:03}_mask.png", mask)
    return root


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what waits the longest, so that nothing waits for it at the end."""
    items.sort(key=lambda item: item.path.stem not in ("test_parallel", "test_faults", "test_benchmarks"))


@pytest.fixture(scope="session")
def mvtec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree that tests must not change."""
    return make_mvtec(tmp_path_factory.mktemp("mvtec"))


RESNET = "-b test_resnet -le layer1 -le layer2 --backbone_weights random"
SMALL = {  # every detector's smallest setting
    "net": f"{RESNET} --pretrain_embed_dimension 24 --target_embed_dimension 16 --dsc_hidden 8 --pre_proj 1",
    "cfa": f"{RESNET} --gamma_d 12 --epochs 2",
    "rd": f"{RESNET} --blocks 1 --epochs 2",
    "stpm": f"{RESNET} --epochs 2",
    "efficientad": "--teacher random --padding --width 0.0625 --epochs 2",
    "logicrd": f"{RESNET} --blocks 1 --epochs 2",
    "patchcore": f"{RESNET} --pretrain_embed_dimension 24 --target_embed_dimension 16 --percentage 0.2",
    "reconpatch": f"{RESNET} --pretrain_embed_dimension 24 --target_embed_dimension 16 --lr 0.01 "
    "--percentage 0.1 --reweight 3 --modulated_dim 12 --projected_dim 8 --epochs 2",
    "cpr": f"{RESNET} --kind texture --codes 4 --stem 8 --width 4 --local_dim 8 --pairs 20 --references 2 --epochs 2",
    "template": "--align none",  # the others are not exported
    "frequency": "",
    "lowrank": "",
    "gaussian": f"{RESNET} --dimensions 12 --eps 1",
    "oneclass": f"{RESNET} --landmarks 20 --rows 60 --nu 0.2",
    "sparse": f"{RESNET} --atoms 8 --rows 100 --steps 10 --score error",  # few patches have almost no covariance
    "fastflow": f"{RESNET} --steps 2 --hidden_ratio 0.2 --epochs 2",
    "msflow": f"{RESNET} --steps 1 --more_steps 1 --position_dim 4 --lr 0.001 --epochs 2",
    "multimodal": "-b resnet18 -le layer2 -le layer1 --backbone_weights random --dim 8 --heads 2 --depth 1 --epochs 2",
}


def small(command: str) -> list[str]:
    """A detector's command in its smallest setting."""
    return [command, *SMALL[command].split()]


SMALL_NET, SMALL_CFA, SMALL_RD = small("net"), small("cfa"), small("rd")
SMALL_LOGICRD, SMALL_MULTIMODAL = small("logicrd"), small("multimodal")
SMALL_DATA = ["--num_workers", "0", "--resize", "40", "--imagesize", "32"]


@pytest.fixture(scope="session")
def model(mvtec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small model; tests must not change it."""
    import main

    results = tmp_path_factory.mktemp("model")
    words = ["--results_path", str(results), "--precision", "fp32", *SMALL_NET, "dataset", *SMALL_DATA]
    main.main([*words, "-d", "bolt", "mvtec", str(mvtec)], standalone_mode=False)
    return results / "project" / "group" / "test" / "models" / "0" / "mvtec_bolt"


@pytest.fixture
def strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known of backbones: for tests that give their names to other networks."""
    monkeypatch.setattr("backbones.extractor._SEEN", {})


@pytest.fixture
def run_main(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run main.py in a fork, in an empty folder; keywords change its environment."""

    def run(*words: object, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        return commands.run(words, tmp_path, stdin=stdin, env={**os.environ, **env})

    return run


@pytest.fixture
def run_process(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run main.py in a process of its own, in an empty folder: for what depends on how a process starts."""

    def run(*words: object, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "main.py"), *map(str, words)]
        env = {**os.environ, **options.pop("env", {})}
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=env, **options)

    return run


@pytest.fixture
def caught_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[object]], list]:
    """The tasks of a command line, not done yet; their run is in a folder of the test's own."""

    def catch(words: Sequence[object]) -> list:
        import main

        caught: list = []

        def stop(pending, *_):
            caught.extend(pending)
            raise InterruptedError

        with monkeypatch.context() as patch, pytest.raises(InterruptedError):
            patch.chdir(tmp_path)
            patch.setattr("experiment.run.work", stop)
            main.main([str(word) for word in words], standalone_mode=False)
        monkeypatch.chdir(tmp_path)
        return caught

    return catch


@pytest.fixture
def display(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What workers show their progress on; bars stay those of this process after a worker's work."""
    from experiment.scale import worker

    monkeypatch.setattr("experiment.machine.progress._make_bar", worker.tqdm)
    said: list = []
    remote = SimpleNamespace(remote=lambda *words: said.append(words))
    return SimpleNamespace(progress=remote, say=remote, said=said)


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The titles of the classes that were embedded, in order."""
    from experiment.train import banks

    titles: list[str] = []

    def count(title, *args, build=banks.build_banks, **options):
        titles.append(title)
        return build(title, *args, **options)

    monkeypatch.setattr(banks, "build_banks", count)
    return titles
