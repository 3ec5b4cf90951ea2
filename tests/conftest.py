"""Small MVTec-like trees, and main.py run as a user runs it."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session", autouse=True)
def quiet_hub() -> None:
    """No test may reach for a hub: a download fails at once."""
    os.environ["HF_HUB_OFFLINE"] = "1"


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


@pytest.fixture(scope="session")
def mvtec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree that tests must not change."""
    return make_mvtec(tmp_path_factory.mktemp("mvtec"))


SMALL_NET = [
    "net",
    "-b",
    "resnet18",
    "-le",
    "layer1",
    "-le",
    "layer2",
    "--backbone_weights",
    "random",
    "--pretrain_embed_dimension",
    "24",
    "--target_embed_dimension",
    "16",
    "--dsc_hidden",
    "8",
    "--pre_proj",
    "1",
]
SMALL_CFA = "cfa -b resnet18 -le layer1 -le layer2 --backbone_weights random --gamma_d 12 --epochs 2".split()
SMALL_RD = "rd -b resnet18 -le layer1 -le layer2 --backbone_weights random --blocks 1 --epochs 2".split()
SMALL_LOGICRD = ["logicrd", *SMALL_RD[1:]]
SMALL_MULTIMODAL = [
    *["multimodal", "-b", "resnet18", "-le", "layer2", "-le", "layer1", "--backbone_weights", "random"],
    *["--dim", "8", "--heads", "2", "--depth", "1", "--epochs", "2"],
]
SMALL_DATA = ["--num_workers", "0", "--resize", "40", "--imagesize", "32"]


@pytest.fixture
def run_main(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run main.py in a process of its own, in an empty folder."""

    def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "main.py"), *map(str, words)]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, **env}, timeout=600
        )

    return run


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The titles of the classes that were embedded, in order."""
    from experiment import task as task_module

    titles: list[str] = []

    def count(title, *args, build=task_module.build_banks, **options):
        titles.append(title)
        return build(title, *args, **options)

    monkeypatch.setattr(task_module, "build_banks", count)
    return titles
