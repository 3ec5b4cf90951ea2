"""Names of pictures: of different images never the same, on no file system, and none too long for one."""

import os
import unicodedata
from pathlib import Path

from files import readable

LONGEST = 200  # bytes; file systems take 255, of which a number, an ending and a temporary name need some
ENDINGS = (".png", ".npy", ".tiff", ".csv")  # of what is written under these names
NAMELESS = ("", ".", "..")


class Names:
    """Gives out names, each once; letters of another case or of another Unicode form do not tell two apart."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}  # the highest given out, of every name

    def take(self, wanted: Path) -> Path:
        """A name like the one wanted, which may stand in folders and has no ending; numbered where it is taken."""
        name = _writable(wanted)
        number = self._numbers.get(_key(name), 0) + 1
        chosen = _numbered(name, number)
        while number > 1 and _key(chosen) in self._numbers:
            number += 1
            chosen = _numbered(name, number)
        self._numbers[_key(name)] = number
        self._numbers.setdefault(_key(chosen), 1)
        return chosen


def _numbered(name: Path, number: int) -> Path:
    return name if number == 1 else name.with_name(f"{name.name}_{number}")


def _writable(wanted: Path) -> Path:
    """The name as UTF-8 text without steps upwards, its parts short enough, and no folder called as a file could be."""
    *folders, last = [_short(readable(part)) for part in wanted.parts if part not in (*NAMELESS, os.sep)] or ["image"]
    return Path(*(f"{part}_" if part.lower().endswith(ENDINGS) else part for part in folders), last)


def _short(part: str) -> str:
    return part if len(part.encode()) <= LONGEST else part.encode()[:LONGEST].decode(errors="ignore")


def _key(name: Path) -> str:
    return unicodedata.normalize("NFC", str(name)).casefold()
