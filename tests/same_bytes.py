"""Whether this checkout gives the numbers of another: the same tables of small runs, the same scores of its models.

    python tests/same_bytes.py OLD_CHECKOUT [--only WORD] [--demo] [--keep FOLDER]

Both train the same small runs, a thread each, by processes of their main.py; results, history and predictions must have
the same bytes. Then this checkout tests, predicts and exports by the models that the other trained, and must give the
same bytes and scores. --demo adds a smaller demo. Prints a line for every comparison, exits with 1 if one differs.
"""

import argparse
import csv
import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from conftest import SMALL_CFA, SMALL_DATA, SMALL_LOGICRD, SMALL_MULTIMODAL, SMALL_NET, SMALL_RD, make_mvtec, small

NEW = Path(__file__).parent.parent
TABLES = ("results.csv", "history.csv", "predictions.csv", "results_best_epoch.csv", "ablation.csv")
SMALL = {
    "net": [*SMALL_NET, "--meta_epochs", "2"],
    "cfa": SMALL_CFA,
    "patchcore": small("patchcore"),
    "rd": SMALL_RD,
    "logicrd": SMALL_LOGICRD,
    "multimodal": SMALL_MULTIMODAL,
}
DEMO = (
    "--precision fp32 net -b efficientnet_lite0 -le blocks.2 -le blocks.4 --pretrain_embed_dimension 256 "
    "--target_embed_dimension 256 --meta_epochs 2 --gan_epochs 2 --auto_noise 0.5 --dsc_lr 0.0001 --dsc_hidden 512 "
    "--dsc_margin .5 --pre_proj 1 dataset --batch_size 16 --resize 96 --imagesize 96 -d mono elpv"
)


class Run(NamedTuple):
    """A command line of a run, and what is predicted with its models: by the start of their folders' names."""

    name: str
    words: list[str]
    inputs: dict[str, Path]
    is_exported: bool = False


def runs(data: Path, table: Path, with_demo: bool) -> Iterator[Run]:
    images = ["dataset", *SMALL_DATA, "-d", "nut", "mvtec", str(data)]
    rows = ["dataset", "--num_workers", "0", "--label", "sick", "table", str(table)]
    of_images, of_rows = {"mvtec_": data / "nut/test"}, {"table_": table}
    for precision in ("fp32", "bf16"):
        for name, words in SMALL.items():
            line = ["--precision", precision, *words, *images]
            yield Run(f"{name} {precision}", line, of_images, is_exported=precision == "fp32")
    changing = ["--feature_bank", "off", *SMALL["net"], *images[:1], "--augment", "--hflip", "0.5", *images[1:]]
    yield Run("net changing images", changing, of_images)
    yield Run("net --recipe stable", [*SMALL["net"], "--recipe", "stable", *images], of_images, is_exported=True)
    yield Run("net --train_backbone", [*SMALL["net"], "--train_backbone", *images], of_images)
    several = ["--seed", "0", "--seed", "1", "--grid", "dsc_hidden=8,6", "--grid", "batch_size=2,3"]
    both = ["dataset", *SMALL_DATA, "mvtec", str(data)]
    yield Run("net --grid", [*several, *SMALL["net"], *both], of_images)
    alone = ["multimodal", *SMALL_MULTIMODAL[SMALL_MULTIMODAL.index("--dim") :]]
    yield Run("multimodal on a table", [*alone, *rows], of_rows)
    yield Run("multimodal on both", [*SMALL_MULTIMODAL, *images, *rows], of_images | of_rows)
    if with_demo:
        yield Run("demo", DEMO.split(), {})


def write_table(path: Path) -> Path:
    """Records whose second number is what their first says, but for the sick ones."""
    lines = [f"{i / 7},{i % 5},{'red' if i % 2 else 'blue'},{int(i % 6 == 5)}" for i in range(60)]
    path.write_text("\n".join(["first,second,colour,sick", *lines]) + "\n")
    return path


class Comparison:
    """Two checkouts and a folder to work in; what was found to differ."""

    def __init__(self, old: Path, where: Path) -> None:
        self.checkouts = {"old": old, "new": NEW}
        self.where = where
        self.differences = 0

    def say(self, name: str, difference: str) -> None:
        """One line; an empty difference is none."""
        self.differences += bool(difference)
        print(f"{'DIFFERS' if difference else 'same   '}  {name}{difference and f': {difference}'}", flush=True)

    def start(self, checkout: str, folder: Path, words: Sequence[object]) -> "subprocess.Popen[str]":
        folder.mkdir(parents=True, exist_ok=True)
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(self.checkouts[checkout] / "main.py"), *map(str, words)]
        output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
        return subprocess.Popen(command, cwd=folder, env=env, text=True, **output)

    def both(self, name: str, words: Sequence[object], folders: dict[str, Path]) -> bool:
        """A command of both at once; says what went wrong."""
        processes = {checkout: self.start(checkout, folder, words) for checkout, folder in folders.items()}
        failed = [failure for checkout, process in processes.items() if (failure := ended(checkout, process))]
        if failed:
            self.say(name, "; ".join(failed))
        return not failed

    def compare(self, run: Run) -> None:
        own = self.where / run.name.replace(" ", "_")
        folders = {checkout: own / checkout for checkout in self.checkouts}
        if not self.both(f"{run.name}, training", run.words, folders):
            return
        self.say(f"{run.name}, training", differing(*folders.values()))
        shutil.copytree(folders["old"], own / "tested")
        if failure := ended("new", self.start("new", own / "tested", ["--test", *run.words])):
            self.say(f"{run.name}, --test", failure)
        else:
            self.say(f"{run.name}, --test of the old models", differing(folders["old"], own / "tested"))
        for start, inputs in run.inputs.items():
            model = next(path for path in sorted(folders["old"].glob("**/models/0/*")) if path.name.startswith(start))
            self.predict(run, model, inputs, own / f"{start}predicted")
            if run.is_exported:
                self.export(run, model, own / f"{start}exported")

    def predict(self, run: Run, model: Path, inputs: Path, where: Path) -> None:
        folders = {checkout: where / checkout for checkout in self.checkouts}
        words = ["predict", model, inputs, "--out", "out", *(["--map", "raw"] if inputs.is_dir() else [])]
        name = f"{run.name}, predict by {model.name}"
        if self.both(name, words, folders):
            self.say(name, differing(*folders.values(), every_file=True))

    def export(self, run: Run, model: Path, where: Path) -> None:
        folders = {checkout: where / checkout for checkout in self.checkouts}
        name = f"{run.name}, export of {model.name}"
        if not self.both(name, ["export", model, "--out", "model.onnx"], folders):
            return
        import numpy as np
        import onnxruntime

        quiet = onnxruntime.SessionOptions()
        quiet.log_severity_level, quiet.intra_op_num_threads = 3, 1
        found, notes = [], []
        for folder in folders.values():
            session = onnxruntime.InferenceSession(str(folder / "model.onnx"), quiet, ["CPUExecutionProvider"])
            size = session.get_inputs()[0].shape[1:]
            images = np.random.default_rng(0).integers(0, 256, (3, *size), dtype=np.uint8)
            found.append(session.run(None, {"images": images}))
            notes.append(session.get_modelmeta().custom_metadata_map)
        outputs = zip(("scores", "maps"), *found, strict=True)
        apart = [f"{kind} by {np.abs(old - new).max()}" for kind, old, new in outputs if (old != new).any()]
        apart += [f"metadata {key}" for key in notes[0] if notes[0][key] != notes[1].get(key)]
        self.say(name, ", ".join(apart))


def ended(checkout: str, process: "subprocess.Popen[str]") -> str:
    """Wait for a command; what it ended with if that is no success."""
    errors = process.communicate()[1]
    last = (errors.strip().splitlines() or [""])[-1]
    return "" if process.returncode == 0 else f"{checkout} exits with {process.returncode} ({last})"


def differing(old: Path, new: Path, every_file: bool = False) -> str:
    """What differs between the tables of two folders, or between all of their files; nothing if there are none."""
    names = {
        checkout: {
            path.relative_to(checkout)
            for path in checkout.rglob("*")
            if path.is_file() and (every_file or path.name in TABLES)
        }
        for checkout in (old, new)
    }
    if not names[old]:
        return "nothing was written"
    if apart := sorted(map(str, names[old] ^ names[new])):
        return f"only one has {', '.join(apart)}"
    wrong = [str(name) for name in sorted(names[old]) if content(old / name) != content(new / name)]
    return f"{len(wrong)} of {len(names[old])} files, {', '.join(wrong)}" if wrong else ""


def content(path: Path) -> bytes:
    """A file's bytes; of predictions of images without the seconds that they took."""
    whole = path.read_bytes()
    rows = list(csv.reader(io.StringIO(whole.decode("utf-8-sig")))) if path.name == "predictions.csv" else [[]]
    if "seconds" not in rows[0]:
        return whole
    seconds = rows[0].index("seconds")
    return repr([row[:seconds] + row[seconds + 1 :] for row in rows]).encode()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, metavar="OLD_CHECKOUT")
    parser.add_argument("--only", default="", help="runs whose name holds this word")
    parser.add_argument("--demo", action="store_true", help="a smaller demo too")
    parser.add_argument("--keep", type=Path, help="a new folder to work in, which stays")
    given = parser.parse_args()
    if not (given.old / "main.py").is_file():
        parser.error(f"no main.py in '{given.old}'")
    with tempfile.TemporaryDirectory() as scratch:
        where = (given.keep or Path(scratch) / "work").resolve()
        where.mkdir(parents=True)
        data, table = make_mvtec(where / "data"), write_table(where / "records.csv")
        comparison = Comparison(given.old.resolve(), where)
        for run in runs(data, table, given.demo):
            if given.only in run.name:
                comparison.compare(run)
    print(f"{comparison.differences} comparisons differ" if comparison.differences else "all is the same")
    return comparison.differences > 0


if __name__ == "__main__":
    sys.exit(main())
