"""Faults in every file of a run and of its data, and a disk that is full at every write: a right result or one clear
error line.

    python tests/faults.py [--cases 400] [--sizes 40] [--seed 0]

Half of the cases are a kind of file of a run, cut at a random place or made unreadable; half are a fault in images,
masks or their names; and a command that meets it. Sizes are those of a file system that a run is written to and that is
too small in all but the last; the run is then continued with room.
Every command runs in a fork of this process. Prints a table and exits with 1 if any case ended otherwise.
"""

import argparse
import collections
import csv
import ctypes
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import CompletedProcess

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from commands import run
from conftest import SMALL_DATA, SMALL_NET, make_mvtec
from PIL import Image

import experiment.train.train

RUN = Path("results/project/group/test")
MODEL = RUN / "models/0/mvtec_bolt"
NET = ["--save_segmentation_images", *SMALL_NET, "--meta_epochs", "3", "--ema", "0.9", "dataset", *SMALL_DATA]
DROP_FROM_BOUNDING_SET, OVERRIDE_PERMISSIONS = 24, (1, 2)  # prctl; root reads everything without this


def tables(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.glob("*.csv") if path.name != "cost.csv"}


def predictions(run: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(run.glob("models/0/*/predictions.csv"))]


def scores(where: Path) -> list[str]:
    return [line.split(",")[1] for line in (where / "out/predictions.csv").read_text().splitlines()]


class Ways:
    """The commands that may meet a fault, and what each gives where there is none."""

    def __init__(self, data: Path) -> None:
        self.words = {
            "continue": [*NET, "mvtec", str(data)],
            "--test": ["--test", *NET, "mvtec", str(data)],
            "report": ["report", str(RUN)],
            "predict": ["predict", str(MODEL), str(data / "bolt/test"), "--out", "out", "--map", "none"],
            "export": ["export", str(MODEL), "--format", "torch_export"],
        }
        self.right: dict[str, object] = {}

    def result(self, way: str, done: CompletedProcess[str], where: Path) -> object:
        """What must be the same with and without a fault, if a command says that all is well."""
        run = where / RUN
        if way == "continue":
            return tables(run), done.stdout
        if way == "--test":
            return tables(run), predictions(run), done.stdout
        if way == "predict":
            return scores(where)
        return done.stdout.partition("\nCost")[0]  # times are never the same again


def verdict(done: CompletedProcess[str], right: bool) -> str:
    lines = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    if "Traceback" in done.stderr or done.returncode < 0:
        return "TRACEBACK"
    if done.returncode == 0:
        return "right result" if right else "WRONG RESULT"
    return "one clear error" if done.returncode in (1, 2) and len(lines) == 1 else "UNCLEAR ERROR"


def without_override() -> None:
    """From the next exec on, even root may only read what its permissions allow; here at once."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    libc.capget(header, sets)
    for capability in OVERRIDE_PERMISSIONS:
        sets[0] &= ~(1 << capability)
    libc.capset(header, sets)


def stop_in_the_second_class() -> None:
    """Die as by SIGKILL after the second meta epoch of the second class, with a state of every epoch."""
    experiment.train.train.STATE_SECONDS = 0
    write, count = experiment.train.train.write_state, 0

    def counted(*arguments: object) -> None:
        nonlocal count
        write(*arguments)
        count += 1
        if count == 5:
            os._exit(137)

    experiment.train.train.write_state = counted


def damaged(where: Path, case: random.Random, cases: int) -> Iterator[tuple[str, str, str]]:
    """(kind of fault, what was hit by which command, verdict) for as many cases."""
    data = make_mvtec(where / "data")
    ways = Ways(data)
    whole, half = where / "whole", where / "half"
    for folder, before in ((whole, None), (half, stop_in_the_second_class)):
        folder.mkdir()
        done = run(ways.words["continue"], folder, before=before)
        assert done.returncode == (0 if folder == whole else 137), done.stderr
    for way, words in ways.words.items():
        done = run(words, whole)
        assert done.returncode == 0, done.stderr
        ways.right[way] = ways.result(way, done, whole)
    shutil.rmtree(whole)
    whole.mkdir()
    run(ways.words["continue"], whole)
    kinds = collections.defaultdict(list)
    for folder in (whole, half):
        for path in sorted((folder / RUN).rglob("*")):
            if path.is_file():
                kind = "tfevents" if "tfevents" in path.name else path.suffix if "/" in path.name else path.name
                kinds[folder.name, "jpg" if path.suffix == ".jpg" else kind].append(path.relative_to(folder))
    for number in range(cases):
        (source, kind), paths = list(kinds.items())[number % len(kinds)]
        path, fault = case.choice(paths), case.choice(["cut", "cut", "unreadable"])
        way = case.choice(list(ways.words)[: 5 if number % 20 == 0 else 4])
        if source == "half" and way == "--test":
            way = "continue"
        place = where / "case"
        shutil.copytree(where / source, place, symlinks=True)
        hit = place / path
        if fault == "cut":
            with hit.open("r+b") as file:
                file.truncate(case.randrange(max(hit.stat().st_size, 1)))
        else:
            hit.chmod(0)
        done = run(ways.words[way], place, before=without_override)
        if fault == "unreadable":
            for left in place.rglob("*"):
                left.chmod(0o700)
        right = done.returncode == 0 and (
            ways.result(way, done, place) == ways.right[way] or (source == "half" and way == "report")
        )
        if verdict(done, right).isupper():
            print(f"{source} {path} {fault}, {way}: {verdict(done, right)}\n{done.stderr[-1500:]}", file=sys.stderr)
        yield fault, f"{kind}, {way}", verdict(done, right)
        shutil.rmtree(place)


def cut(path: Path, case: random.Random) -> None:
    with path.open("r+b") as file:
        file.truncate(case.randrange(path.stat().st_size))


def to_nothing(path: Path, case: random.Random) -> None:
    path.unlink()
    path.symlink_to("gone.png")


def exchanged(path: Path, case: random.Random) -> None:
    other = case.choice([one for one in path.parent.glob("*.png") if one != path])
    shutil.copyfile(other, path)


def of_size(path: Path, size: tuple[int, int]) -> None:
    Image.new("L", size).save(path)


HARM: dict[str, tuple[str, Callable[[Path, random.Random], object]]] = {  # what is hit, and how
    "image cut": ("image", cut),
    "image empty": ("image", lambda path, case: path.write_bytes(b"")),
    "image unreadable": ("image", lambda path, case: path.chmod(0)),
    "image exchanged": ("image", exchanged),
    "link to nothing": ("image", to_nothing),
    "mask cut": ("mask", cut),
    "mask without a defect": ("mask", lambda path, case: of_size(path, (48, 48))),
    "mask of another size": ("mask", lambda path, case: of_size(path, (48, 37))),
    "mask exchanged": ("mask", exchanged),
    "two masks of one name": ("mask", lambda path, case: shutil.copyfile(path, path.with_suffix(".bmp"))),
    "name of odd bytes": ("test image", lambda path, case: shutil.copyfile(path, os.fsencode(path)[:-4] + b"\xe9.png")),
    "long name": ("test image", lambda path, case: shutil.copyfile(path, path.with_name("x" * 251 + ".png"))),
}


def harmed(where: Path, case: random.Random, cases: int) -> Iterator[tuple[str, str, str]]:
    """(kind of fault in the images or masks, the command that meets it, verdict) for as many cases.

    Another run of a changed class is right if the images that nothing was done to have the scores of before; a run that
    goes on must not take other images for those of its results.
    """
    data = make_mvtec(where / "harmed_data", ["bolt"])
    words = {
        "run": [*NET, "mvtec", "data"],
        "continue": [*NET, "mvtec", "data"],
        "predict": ["predict", str(MODEL), "data/bolt/test", "--out", "out", "--map", "none"],
    }
    done_before = where / "done"
    shutil.copytree(data, done_before / "data")
    assert run(words["run"], done_before).returncode == 0
    known = {"run": scores_by_name(done_before / RUN / "models/0/mvtec_bolt/predictions.csv")}
    assert run(words["predict"], done_before).returncode == 0
    known["predict"] = scores_by_name(done_before / "out/predictions.csv")
    shutil.rmtree(done_before / "out")
    for number in range(cases):
        kind, (what, harm) = list(HARM.items())[number % len(HARM)]
        way = case.choice(list(words))
        place = where / "case"
        shutil.copytree(done_before, place)
        if way == "run":
            shutil.rmtree(place / "results")
        pattern = {"image": "t*/*/*.png", "test image": "test/*/*.png", "mask": "ground_truth/*/*.png"}[what]
        hit = case.choice(sorted((place / "data/bolt").glob(pattern)))
        harm(hit, case)
        done = run(words[way], place, before=without_override)
        right = done.returncode == 0 and way != "continue"
        if right and not (kind == "image exchanged" and "train" in hit.parts):
            table = place / ("out/predictions.csv" if way == "predict" else RUN / "models/0/mvtec_bolt/predictions.csv")
            found = scores_by_name(table)
            same = [name for name in known[way] if not name.endswith(f"{hit.parent.name}/{hit.name}")]
            right = all(found.get(name) == known[way][name] for name in same)
        if verdict(done, right).isupper():
            print(f"{kind} {hit}, {way}: {verdict(done, right)}\n{done.stderr[-1500:]}", file=sys.stderr)
        yield kind, way, verdict(done, right)
        shutil.rmtree(place)


def scores_by_name(table: Path) -> dict[str, str]:
    with table.open(encoding="utf-8-sig", newline="") as file:
        return {row.get("image") or row["path"]: row["score"] for row in csv.DictReader(file)}


@contextmanager
def small_disk(where: Path) -> Iterator[Callable[[int], None]]:
    """A file system of its own; the function that is given sets its size in KiB."""
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(where)], check=True, capture_output=True)
    try:
        yield lambda size: subprocess.run(["mount", "-o", f"remount,size={size}k", str(where)], check=True) and None
    finally:
        subprocess.run(["umount", "-l", str(where)], check=True)


def full(where: Path, sizes: int) -> Iterator[tuple[str, str, str]]:
    """(kind of fault, size, verdict) of runs on file systems that are too small, and of their continuation."""
    data = make_mvtec(where / "full_data")
    words = [*NET, "mvtec", str(data)]
    free = where / "free"
    free.mkdir()
    assert run(words, free).returncode == 0
    expected = tables(free / RUN), predictions(free / RUN)
    needed = sum(-(-path.stat().st_size // 4096) * 4 for path in free.rglob("*") if path.is_file())
    for number in range(sizes):
        size = 4 + needed * number // sizes
        with small_disk(where / "disk") as resize:
            resize(size)
            (where / "disk" / "results").mkdir()
            place = where / "place"
            place.mkdir()
            (place / "results").symlink_to(where / "disk" / "results")
            done = run(words, place)
            right = done.returncode == 0 and (tables(place / RUN), predictions(place / RUN)) == expected
            if verdict(done, right).isupper():
                print(f"{size} KiB: {verdict(done, right)}\n{done.stderr[-1500:]}", file=sys.stderr)
            yield "full disk", "", verdict(done, right)
            resize(65536)
            done = run(words, place)
            right = done.returncode == 0 and (tables(place / RUN), predictions(place / RUN)) == expected
            if not right:
                print(f"{size} KiB, continued: {verdict(done, right)}\n{done.stderr[-1500:]}", file=sys.stderr)
            yield "full disk, then continued", "", verdict(done, right) if right else "WRONG RESULT"
            shutil.rmtree(place)
        (where / "disk").rmdir()


def try_all(cases: int, sizes: int, seed: int) -> collections.Counter[tuple[str, str]]:
    """How many cases of each kind of fault ended in which verdict."""
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        for fault, _, outcome in (
            *damaged(Path(folder), random.Random(seed), cases - cases // 2),
            *harmed(Path(folder), random.Random(seed), cases // 2),
        ):
            counts[fault, outcome] += 1
        try:
            with small_disk(Path(folder) / "probe"):
                pass
            for fault, _, outcome in full(Path(folder), sizes):
                counts[fault, outcome] += 1
        except subprocess.CalledProcessError as error:
            print(f"no file system could be mounted, so no full disk was tried: {error}", file=sys.stderr)
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=400)
    parser.add_argument("--sizes", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    found = try_all(**vars(parser.parse_args()))
    for (fault, outcome), count in sorted(found.items()):
        print(f"{fault:28}{outcome:20}{count:5}")
    sys.exit(any(outcome.isupper() for _, outcome in found))
