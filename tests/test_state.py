"""The state of training: when it is written, how, and what is not learned where nobody looks."""

import tracemalloc

import pandas as pd
import pytest
import torch
from conftest import SMALL_DATA, SMALL_LOGICRD, SMALL_NET, small
from test_resume import folder, outputs

import experiment.train.train as training_of_one
import main
from errors import DataError, Interrupted
from experiment.train.state import write_state
from methods import logicrd


class Trained:
    """A training whose state is a tensor of so many bytes."""

    def __init__(self, size=0):
        self.tensor = torch.zeros(size, dtype=torch.uint8)

    def state_dict(self):
        return {"meta_epoch": 1, "tensor": self.tensor}


def call(where, *words, name="test"):
    """A command line in this process; the folder of its run."""
    given = ["--results_path", where / "results", "--run_name", name, *words]
    main.main([str(word) for word in given], standalone_mode=False)
    return folder(where, name)


def interrupt_after(monkeypatch, count):
    """Let the writing of the state end this process, as a signal does, once it was written so many times."""
    written = []

    def write(path, *arguments):
        write_state(path, *arguments)
        written.append(path)
        if len(written) == count:
            raise Interrupted(2)

    monkeypatch.setattr(training_of_one, "write_state", write)
    return written


def test_a_state_is_written_without_a_copy(tmp_path):
    tracemalloc.start()
    try:
        write_state(tmp_path / "state.pt", Trained(2**24), [], [[]], [])
        assert tracemalloc.get_traced_memory()[1] < 2**21
    finally:
        tracemalloc.stop()
    found = torch.load(tmp_path / "state.pt", weights_only=True)
    assert found["training"]["tensor"].shape == (2**24,) and found["history"] == [[]]


def test_a_full_disk_leaves_the_state_before_it(tmp_path):
    path = tmp_path / "state.pt"
    write_state(path, Trained(), [], [[]], [])
    before = path.read_bytes()
    (tmp_path / ".state.pt.partial").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"state\.pt' cannot be written: No space left on device; it needs 1,000,000 b"):
        write_state(path, Trained(1_000_000), [], [[]], [])
    assert path.read_bytes() == before and [one.name for one in tmp_path.iterdir()] == ["state.pt"]


def test_a_signal_while_a_state_is_written_is_not_hidden(tmp_path, monkeypatch):
    """torch.save ends with an error of its own where it cannot go on."""

    def interrupted(*_):
        try:
            raise Interrupted(15)
        finally:
            raise RuntimeError("unexpected pos")

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(Interrupted):
        write_state(tmp_path / "state.pt", Trained(), [], [[]], [])
    assert not (tmp_path / "state.pt").exists()


@pytest.mark.parametrize(("seconds", "count"), [(1e9, 2), (0, 8)])
def test_states_are_written_now_and_then(tmp_path, monkeypatch, mvtec, seconds, count):
    """Of both classes the first meta epoch, and all where the time between them has passed."""
    monkeypatch.setattr(training_of_one, "STATE_SECONDS", seconds)
    written = interrupt_after(monkeypatch, None)
    call(tmp_path, *SMALL_NET, "--meta_epochs", "4", "dataset", *SMALL_DATA, "mvtec", mvtec)
    assert len(written) == count


@pytest.mark.parametrize("detector", ["logicrd", "multimodal"])
def test_a_state_of_any_age_is_gone_on_from(tmp_path, monkeypatch, mvtec, detector):
    """Interrupted after epochs that are not evaluated, and whose state was and was not written: the same bytes.

    Of several classes one file has the state of all, and the scalars of all go on.
    """
    words = [*small(detector), "--epochs", "6", "dataset", *SMALL_DATA, "--batch_size", "3", "mvtec", mvtec]
    words = ["--eval_every", "4", *words]
    whole = call(tmp_path, *words, name="whole")
    for seconds, count in ((0, 2), (1e9, 1), (0, 1)):  # after epochs 2, 3 and 4
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(training_of_one, "STATE_SECONDS", seconds)
            interrupt_after(patch, count)
            call(tmp_path, *words)
    run = folder(tmp_path)
    assert [path.parent.name for path in run.rglob("state.pt")] == [".mvtec_bolt.partial"]
    call(tmp_path, *words)
    assert outputs(run) == outputs(whole)
    scalars = [len(list(path.glob("events.*"))) for path in sorted(run.glob("models/0/*"))]
    assert scalars == ([4, 4] if detector == "multimodal" else [4, 1])
    assert not list(run.rglob("state.pt"))


@pytest.mark.parametrize("options", [[], ["--feature_bank", "off"]])
def test_statistics_are_taken_where_they_are_looked_at(tmp_path, monkeypatch, mvtec, options):
    """Of LogicRD: with the same losses in between, and the same numbers there, images that change included."""
    taken = []
    learn = logicrd.shrunk
    monkeypatch.setattr(logicrd, "shrunk", lambda vectors: taken.append(0) or learn(vectors))
    data = [*SMALL_DATA, "--batch_size", "3", *(["--augment"] if options else []), "-d", "nut"]
    words = [*options, *SMALL_LOGICRD, "--epochs", "5", "dataset", *data, "mvtec", mvtec]
    counts, histories = [], []
    for every in ("1", "2", "9"):
        taken.clear()
        run = call(tmp_path, "--eval_every", every, *words, name=every)
        counts.append(len(taken))
        histories.append(pd.read_csv(run / "history.csv", dtype=str))
    assert counts == [5 * counts[2], 3 * counts[2], counts[2]] and counts[2]
    for history in histories[1:]:
        assert history["loss"].equals(histories[0]["loss"])
        evaluated = history["image_auroc"].notna()
        assert evaluated.sum() < 5
        assert history[evaluated].equals(histories[0][evaluated])
