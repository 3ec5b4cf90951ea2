"""What a job was of: the files that it read, so that its results are not taken for those of other ones."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from datasets import ClassSamples

_CONTENTS: dict[tuple[str, str], str] = {}  # by the root, and what is listed below it


@dataclass(frozen=True)
class Inputs:
    """SHA-256 of a class's samples, by names, sizes and times of their files, and by names and contents.

    The first is found without reading the files. Of files that were copied or touched it is another.
    """

    listed: str
    content: str

    @classmethod
    def of(cls, samples: ClassSamples, root: Path) -> "Inputs":
        """Those of a class; names are paths below the root. The jobs of a process read its files once."""
        listed = _digest(samples, root, _listed)
        key = str(root.absolute()), listed
        if key not in _CONTENTS:
            _CONTENTS[key] = _digest(samples, root, Path.read_bytes)
        return cls(listed, _CONTENTS[key])

    def are_those_of(self, samples: ClassSamples, root: Path) -> bool:
        """Whether a class is what it was; files are read only where sizes or times are others."""
        return self.listed == _digest(samples, root, _listed) or self.content == _digest(samples, root, Path.read_bytes)


def _listed(path: Path) -> bytes:
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}".encode()


def _digest(samples: ClassSamples, root: Path, facts: Callable[[Path], bytes]) -> str:
    digest = hashlib.sha256()
    for part in (samples.train, samples.validation, samples.test):
        digest.update(f"{len(part)}\0".encode())
        for sample in part:
            held = sample.pixels if sample.values is None else sample.values  # no file of its own
            paths = (sample.image_path, *sample.mask_paths) if held is None else (sample.image_path,)
            if sample.interest_path is not None:
                digest.update(f"{facts(sample.interest_path)!r}\0".encode())
            digest.update(f"{sample.anomalous} {len(paths)}\0".encode())
            for path in paths:
                content = facts(path) if held is None else held.tobytes()
                digest.update(os.fsencode(os.path.relpath(path, root)) + f"\0{len(content)}\0".encode())
                digest.update(content)
    return digest.hexdigest()
