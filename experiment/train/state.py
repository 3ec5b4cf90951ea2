"""The state of training, kept now and then, and taken up from it."""

import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from backbones import Features
from detection import Detector, Normal, Training
from errors import DataError, first_line
from experiment.plan.job import Job
from experiment.record.inputs import Inputs
from experiment.train.training_set import TrainingEmbeddings
from files import new_file

Rows = list[dict[str, Any]]  # of a job's history


def write_state(
    path: Path,
    training: Training,
    lessons: Sequence[Normal],
    histories: Sequence[Rows],
    inputs: Sequence[Inputs],
    seconds: float = 0.0,
) -> None:
    """Keep all that the next meta epoch depends on in a file, without a second copy of it in memory; and the seconds
    that training took so far.

    Raises:
        DataError: as new_file.
    """
    state = {
        "training": training.state_dict(),
        "orders": [own.train.order.state_dict() for own in lessons],
        "history": list(histories),
        "inputs": [own.content for own in inputs],
        "seconds": seconds,
    }
    save_state(path, state)


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors, numbers, lists and dicts of them, as torch.load reads them with weights_only.

    Raises:
        DataError: as new_file.
    """
    with new_file(path, _size(state)) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # hides what the file raised: a full disk, a signal
            raise error.__context__ or error from None


def read_state(path: Path, jobs: Sequence[Job], inputs: Sequence[Inputs]) -> dict[str, Any] | None:
    """What write_state wrote of jobs, if it did.

    Raises:
        DataError: it is damaged, or of other images.
    """
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if [len(rows) for rows in state["history"]] != [state["training"]["meta_epoch"]] * len(jobs):
            raise ValueError("its history does not fit")
        known = state.get("inputs")  # earlier versions did not know them
        state["seconds"] = float(state.get("seconds", 0.0))
    except (OSError, RuntimeError, ValueError, TypeError, EOFError, LookupError, pickle.UnpicklingError) as error:
        raise _damaged(path, error) from error
    if known is not None and known != [own.content for own in inputs]:
        roots = " or ".join(dict.fromkeys(f"'{job.root}'" for job in jobs))
        raise DataError(
            f"training in '{path.parent}' began with other images than those that are now in {roots}: remove that "
            "folder to train it from its start, or choose another --run_name"
        )
    return state


def take_up(
    detector: Detector, lessons: Sequence[Normal], bar: tqdm, path: Path, state: dict[str, Any] | None
) -> Training:
    """Training of a detector on what lessons_of says, from its start or from a state that read_state returned.

    Raises:
        DataError: the state is not one of these jobs.
    """
    normal = [Normal(_Counted(own.train, bar), own.held_out) for own in lessons]
    if state is None:
        return detector.training_on(*normal)
    try:
        for own, order in zip(lessons, state["orders"], strict=True):
            own.train.order.load_state_dict(order)
        return detector.training_on(*normal, state=state["training"])
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise _damaged(path, error) from error


def _size(state: Any) -> int:
    """The bytes of all tensors in a state."""
    if isinstance(state, Tensor):
        return state.nbytes
    held = state.values() if isinstance(state, Mapping) else state if isinstance(state, list | tuple) else ()
    return sum(map(_size, held))


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"'{path}' is damaged ({first_line(error)}): remove the folder '{path.parent}' to train it from its start"
    )


class _Counted:
    """Batches that advance a bar, read or passed over."""

    def __init__(self, batches: TrainingEmbeddings, bar: tqdm) -> None:
        self.batches = batches
        self.bar = bar

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Features]:
        for batch in self.batches:
            self.bar.update()  # before: of the last nobody may come back
            yield batch

    def pass_over(self) -> None:
        self.batches.pass_over()
        self.bar.update(len(self))
