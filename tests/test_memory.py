"""When memory runs out: fewer images at once, the next place for the bank, or one clear line."""

import pytest
import torch
from conftest import SMALL_DATA, SMALL_NET

import main
from errors import DataError
from experiment.machine.memory import Halving, one_line_when_full
from experiment.train import banks
from simplenet import SimpleNet


def full(batch):
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_halving_warns_once_and_remembers(capsys):
    tried = []

    def function(batch):
        tried.append(len(batch))
        return full(batch) if len(batch) > 2 else 2 * batch

    halving = Halving(function, "embedding")
    for count in (7, 5, 1):
        batch = torch.randn(count, 3)
        assert torch.equal(halving(batch), 2 * batch)
    assert tried == [7, 3, 1, 1, 1, 1, 1, 1, 1, *[1] * 5, 1]
    assert capsys.readouterr().err == "Out of memory at embedding of 7 images at once: going on with fewer\n"


def test_halving_gives_up_at_a_single_item():
    with pytest.raises(DataError, match="out of memory at embedding of a single image: lower --batch_size"):
        Halving(full, "embedding")(torch.zeros(4, 1))


def test_other_errors_stay_what_they_are():
    def wrong(batch):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        Halving(wrong, "embedding")(torch.zeros(4, 1))
    with pytest.raises(RuntimeError, match="mat1"), one_line_when_full():
        wrong(None)
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("x"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ):
        with pytest.raises(DataError, match="out of memory: lower --batch_size"), one_line_when_full():
            raise error


def test_a_bank_moves_on_to_the_next_place(monkeypatch, capsys):
    tried = []

    class Bank(banks.FeatureBank):
        def __init__(self, shape, dtype, place, device):
            tried.append(place)
            if place != "disk":
                full(None)
            super().__init__(shape, dtype, place, device)

    monkeypatch.setattr(banks, "FeatureBank", Bank)
    monkeypatch.setattr(banks, "choose_place", lambda size, device: "device")
    shape, cpu = (2, 1, 1, 4), torch.device("cpu")
    assert banks._allocate(shape, torch.float32, "auto", cpu).place == "disk"
    assert tried == ["device", "host", "disk"]
    assert capsys.readouterr().err.count("No room for the feature bank") == 2
    with pytest.raises(DataError, match=r"out of memory: .*choose another --feature_bank"):
        banks._allocate(shape, torch.float32, "host", cpu)


@pytest.mark.parametrize("bank", ["auto", "off"])
def test_a_run_out_of_memory(mvtec, tmp_path, monkeypatch, capsys, bank):
    """Embedding for the bank goes on with the same numbers; elsewhere the run ends in one line."""
    words = ["--results_path", str(tmp_path / bank), "--feature_bank", bank, *SMALL_NET, "dataset", *SMALL_DATA]
    words += ["-d", "nut", "mvtec", str(mvtec)]
    main.main(words, standalone_mode=False)
    embed = SimpleNet.embed
    monkeypatch.setattr(SimpleNet, "embed", lambda self, x, _=None: embed(self, x) if len(x) < 2 else full(x))
    words[1] += "_full"
    if bank == "off":
        with pytest.raises(DataError, match="out of memory"):
            main.main(words, standalone_mode=False)
        return
    main.main(words, standalone_mode=False)
    assert capsys.readouterr().err.count("going on with fewer") == 2  # training and test images
    tables = [next((tmp_path / name).rglob("results.csv")).read_bytes() for name in (bank, f"{bank}_full")]
    assert tables[0] == tables[1]
