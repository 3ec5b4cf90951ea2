"""Every dataset's published layout in small, each with things lying about that are no data."""

import json
import pickle
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from conftest import make_mvtec
from PIL import Image

SIZE = 36


def save(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def texture(seed: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(60, 120, (size, size, 3), dtype=np.uint8)


def mask(value: int = 255, start: int = 14, size: int = SIZE) -> np.ndarray:
    pixels = np.zeros((size, size), np.uint8)
    pixels[start : start + 6, 14:20] = value
    return pixels


def no_data(folder: Path) -> None:
    """What systems leave in folders."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("Thumbs.db", "._000.png", "readme.txt"):
        (folder / name).write_bytes(b"junk")


def mvtec(root: Path) -> None:
    make_mvtec(root, ["bottle"])
    save(root / "bottle" / "train" / "good" / "004.PNG", texture(4))
    no_data(root / "bottle" / "test" / "crack")
    no_data(root / "licenses")


def mpdd(root: Path) -> None:
    make_mvtec(root, ["bracket_black"])
    no_data(root / "bracket_black" / "ground_truth" / "crack")
    no_data(root / "extra")


def btad(root: Path) -> None:
    for name, ending, mask_ending in (("01", "bmp", "png"), ("02", "png", "png"), ("03", "bmp", "bmp")):
        for i in range(3):
            save(root / name / "train" / "ok" / f"{i:04}.{ending}", texture(i))
        save(root / name / "test" / "ok" / f"0000.{ending.upper()}", texture(3))
        for i in range(2):
            save(root / name / "test" / "ko" / f"{i:04}.{ending}", texture(4 + i))
            save(root / name / "ground_truth" / "ko" / f"{i:04}.{mask_ending}", mask())
        no_data(root / name / "train" / "ok")
    no_data(root / "__MACOSX")


def mvtec_loco(root: Path) -> None:
    box = root / "breakfast_box"
    for part in ("train", "validation", "test"):
        for i in range(3):
            save(box / part / "good" / f"{i:03}.png", texture(i))
    for kind in ("logical_anomalies", "structural_anomalies"):
        for i in range(2):
            save(box / "test" / kind / f"{i:03}.png", texture(10 + i))
            save(box / "ground_truth" / kind / f"{i:03}" / "000.png", mask(255))
    save(box / "ground_truth" / "logical_anomalies" / "000" / "001.png", mask(254, start=24))
    no_data(box / "ground_truth" / "logical_anomalies" / "000")
    defects = [
        {"defect_name": "missing", "pixel_value": 255, "saturation_threshold": 0.5, "relative_saturation": True},
        {"defect_name": "swapped", "pixel_value": 254, "saturation_threshold": 20, "relative_saturation": False},
    ]
    (box / "defects_config.json").write_text(json.dumps(defects))


def visa(root: Path) -> None:
    lines = ["object,split,label,image,mask"]
    for name in ("candle", "pcb1"):
        images = f"{name}/Data/Images"
        for i in range(4):
            save(root / images / "Normal" / f"{i:04}.JPG", texture(i))
            lines.append(f"{name},{'train' if i < 3 else 'test'},normal,{images}/Normal/{i:04}.JPG,")
        for i in range(2):
            save(root / images / "Anomaly" / f"{i:03}.JPG", texture(5 + i))
            save(root / name / "Data" / "Masks" / "Anomaly" / f"{i:03}.png", mask(1 + i))
            lines.append(f"{name},test,anomaly,{images}/Anomaly/{i:03}.JPG,{name}/Data/Masks/Anomaly/{i:03}.png")
        no_data(root / images / "Normal")
    lines.append("cashew,train,normal,cashew/Data/Images/Normal/000.JPG,")  # a class that was not unpacked
    (root / "split_csv").mkdir()
    (root / "split_csv" / "1cls.csv").write_text("\n".join(lines) + "\n")


def visa_converted(root: Path) -> None:
    for i in range(3):
        save(root / "candle" / "train" / "good" / f"{i:04}.JPG", texture(i))
    save(root / "candle" / "test" / "good" / "0003.JPG", texture(3))
    save(root / "candle" / "test" / "bad" / "000.JPG", texture(4))
    save(root / "candle" / "ground_truth" / "bad" / "000.png", mask())
    no_data(root / "candle" / "test" / "bad")


def sdd(root: Path) -> None:
    for k in range(1, 8):
        for i in range(2):
            item = root / f"kos{k:02}"
            save(item / f"Part{i}.{'JPG' if k == 2 else 'jpg'}", texture(10 * k + i))
            save(item / f"Part{i}_label.bmp", mask() if i == 1 and k % 3 == 0 else mask(0))
    no_data(root / "kos01")
    no_data(root / "notes")


def sdd2(root: Path) -> None:
    for part, first, defects in (("train", 10000, (2,)), ("test", 20000, (1, 2))):
        for i in range(4):
            save(root / part / f"{first + i}.png", texture(i))
            save(root / part / f"{first + i}_GT.png", mask() if i in defects else mask(0))
    save(root / "train" / "10301_GT(copy).png", mask())
    no_data(root / "test")


def mtd(root: Path) -> None:
    for i in range(10):
        save(root / "MT_Free" / "Imgs" / f"exp1_num_{i}.{'JPG' if i == 0 else 'jpg'}", texture(i))
        save(root / "MT_Free" / "Imgs" / f"exp1_num_{i}.png", mask(0))
    for kind in ("Blowhole", "Break", "Crack", "Fray", "Uneven"):
        save(root / f"MT_{kind}" / "Imgs" / "exp2_num_1.jpg", texture(20))
        save(root / f"MT_{kind}" / "Imgs" / "exp2_num_1.png", mask())
    no_data(root / "MT_Free" / "Imgs")
    no_data(root / "Datasets")


CIFAR_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class Python2Pickler(pickle._Pickler):
    """Writes strings and arrays as Python 2 did, as the published files hold them."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def save_string(self, text: bytes | str) -> None:
        text = text.encode("latin1") if isinstance(text, str) else text
        self.write(pickle.BINSTRING + struct.pack("<i", len(text)) + text)

    dispatch[bytes] = dispatch[str] = save_string


def python2_pickle(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        Python2Pickler(file, protocol=2).dump(content)
    path.write_bytes(path.read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))


def cifar10(root: Path) -> None:
    folder = root / "cifar-10-batches-py"
    for k, name in enumerate(
        ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
    ):
        data = np.random.default_rng(k).integers(0, 256, (11, 3072), dtype=np.uint8)
        labels = [i % 10 for i in range(11)]
        names = [f"{i}.png" for i in range(11)]
        python2_pickle(folder / name, {"batch_label": name, "labels": labels, "data": data, "filenames": names})
    python2_pickle(folder / "batches.meta", {"num_cases_per_batch": 11, "label_names": CIFAR_NAMES, "num_vis": 3072})
    (folder / "readme.html").write_text("<html></html>")


def elpv(root: Path) -> None:
    lines = []
    for i in range(8):
        save(root / "images" / f"cell{i:04}.png", texture(i)[..., 0])
        lines.append(f"images/cell{i:04}.png  {0.0 if i < 6 else 1.0}  mono\n")
    (root / "labels.csv").write_text("".join(lines))


def folder(root: Path) -> None:
    part = root / "part"
    for i in range(6):
        save(part / "train" / "good" / "monday" / f"{i}.jpeg", texture(i))
    for name in ("test/good/a.TIF", "test/scratch/deep/a.ppm", "test/scratch/b.webp", "test/dent/a.gif"):
        save(part / name, texture(7))
    for name in ("scratch/deep/a_mask.png", "b.bmp", "dent/a.png"):
        save(part / "ground_truth" / name, mask())
    no_data(part / "train" / "good" / "monday")
    no_data(part / "train" / "good" / ".trash")
    save(part / "train" / "good" / ".trash" / "9.png", texture(9))
    no_data(part / "test" / "notes")
    no_data(root / "documents")


@dataclass(frozen=True)
class Tree:
    """What a tree holds: its classes, and how many images of the first class there are."""

    classes: list[str]
    train: int
    normal: int
    anomalous: int
    defect_types: set[str]
    masks: int = 0
    validation: int = 0


TREES = {
    mvtec: Tree(["bottle"], 5, 2, 2, {"crack"}, 2),
    mpdd: Tree(["bracket_black"], 4, 2, 2, {"crack"}, 2),
    btad: Tree(["01", "02", "03"], 3, 1, 2, {"ko"}, 2),
    mvtec_loco: Tree(["breakfast_box"], 3, 3, 4, {"logical_anomalies", "structural_anomalies"}, 5, 3),
    visa: Tree(["candle", "pcb1"], 3, 1, 2, {"anomaly"}, 2),
    visa_converted: Tree(["candle"], 3, 1, 1, {"bad"}, 1),
    sdd: Tree(["commutator"], 9, 3, 2, {"defect"}, 2),
    sdd2: Tree(["surface"], 3, 2, 2, {"defect"}, 2),
    mtd: Tree(["tile"], 8, 2, 5, {"blowhole", "break", "crack", "fray", "uneven"}, 5),
    cifar10: Tree(CIFAR_NAMES, 10, 2, 9, set(CIFAR_NAMES[1:])),
    elpv: Tree(["mono"], 4, 2, 2, {"defect"}),
    folder: Tree(["part"], 6, 1, 3, {"scratch", "dent"}, 3),
}
