"""The pages for users: what stands in them as code, and what they link to."""

import re
from dataclasses import dataclass
from pathlib import Path

from commands import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE, NOT_RUN = re.compile(r"```(\w*)"), re.compile(r"<!-- not run: (.+) -->")


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        place: its page and line.
        language: of a fenced block; an indented one has none.
        lines: what stands in it.
        not_run: why it is marked as not run; empty where it is not.
    """

    place: str
    language: str
    lines: list[str]
    not_run: str

    @property
    def commands(self) -> list[str]:
        """Its command lines, those that a backslash divides in one; comments are none."""
        if self.language:
            return []
        lines = "\n".join(self.lines).replace("\\\n", " ").splitlines()
        return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """All blocks of code of a page, in order."""
    found: list[Block] = []
    above, inside = "", None
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fence = FENCE.match(line)
        indented = line.startswith("    ") and not line.isspace()
        if inside is not None and inside.language and not fence:
            inside.lines.append(line)
        elif inside is not None and inside.language:
            inside = None
        elif inside is not None and indented:
            inside.lines.append(line)
        elif fence or indented:
            mark = NOT_RUN.fullmatch(above)
            language = (fence[1] or "none") if fence else ""
            inside = Block(f"{name(page)}:{number}", language, [] if fence else [line], mark[1] if mark else "")
            found.append(inside)
        elif line.strip():
            inside, above = None, line
        if inside is not None:
            above = ""
    return found


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.S | re.M)
    return re.sub(r"^    .*$", "", text, flags=re.M)


def anchors(page: Path) -> set[str]:
    """What a link may name behind #: a heading in small letters, hyphens for spaces, without punctuation."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    """All that a page links to or shows as a picture."""
    return re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", re.sub(r"\]\([^)]*\)\]", "]", prose(page)))
