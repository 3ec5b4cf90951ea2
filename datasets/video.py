"""Videos, which are not read: how to make images of one."""

from pathlib import Path

from errors import DataError

SUFFIXES = frozenset(f".{ending}" for ending in "mp4 m4v avi mov mkv webm wmv flv mpg mpeg mts m2ts 3gp ogv".split())


def refuse_video(path: Path) -> None:
    """Say how to make images of a video.

    Raises:
        DataError: the path is one's.
    """
    if path.suffix.lower() in SUFFIXES:
        raise DataError(
            f"'{path}' is a video, and images are read: make some of its frames, such as two per second by "
            f"'mkdir frames; ffmpeg -i {path.name} -vf fps=2 frames/%06d.png', and give their folder"
        )


def videos_in(folder: Path) -> list[Path]:
    """The videos in a folder and below it, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
