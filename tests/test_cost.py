"""cost.csv: what a model cost and costs, in a table of its own, kept through interruptions."""

import json
import math
import mmap

import pandas as pd
import pytest
import torch
from conftest import SMALL_DATA, SMALL_NET

import experiment.train.train as train
import main
from errors import DataError, Interrupted
from experiment.config import JobName
from experiment.machine import usage
from experiment.machine.usage import Peak, PeakMemory, Stopwatch
from experiment.record.cost import Cost, cost_table, read_cost, write_cost
from methods import load

CPU = torch.device("cpu")
COST = Cost(10.0, 4.0, 1.0, 1000, 0.5, 300.0, None)


def name(title, seed=0):
    return JobName(0, title, 0, seed, title, f"models/0/{title}_{seed}")


def test_rows_are_means_over_seeds_and_a_peak_may_be_unknown():
    other = Cost(20.0, 8.0, 3.0, 1000, 0.5, None, None)
    table = cost_table({name("a"): COST, name("a", 1): other, name("b"): other}).set_index("class")
    assert table.index.tolist() == ["a", "b", "Mean"]
    assert table["fit_seconds"].tolist() == [15, 20, 17.5] and table["ms_from_features"].tolist() == [2, 3, 2.5]
    assert table["peak_host_mb"].tolist()[::2] == [300, 300] and math.isnan(table.loc["b", "peak_host_mb"])
    assert table["peak_device_mb"].isna().all() and cost_table({}).empty


def test_what_is_written_is_read_and_what_is_damaged_named(tmp_path):
    assert read_cost(tmp_path) is None
    write_cost(tmp_path, COST)
    assert read_cost(tmp_path) == COST
    written = json.loads((tmp_path / "cost.json").read_text())
    for spoilt in ("{", "[]", json.dumps({**written, "fit_seconds": "1"}), json.dumps({**written, "new": 1})):
        (tmp_path / "cost.json").write_text(spoilt)
        with pytest.raises(DataError, match=r"cost\.json' cannot be read .*: nothing else needs it, remove it"):
            read_cost(tmp_path)


def test_a_stopwatch_counts_what_is_done_in_it_alone(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(usage.time, "perf_counter", lambda: now[0])

    def items():
        for seconds in (1, 2, 3):
            now[0] += seconds
            yield seconds

    watch = Stopwatch(CPU, seconds=10)
    for _ in watch.timed(items()):
        now[0] += 100
    with watch:
        now[0] += 5
    assert watch.seconds == 10 + 6 + 5


def test_a_peak_is_found_after_it_is_over():
    memory = PeakMemory(CPU)
    if not memory.knows_host:
        pytest.skip("the system does not say")
    before = memory.so_far().host
    with mmap.mmap(-1, 2**26, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
        held[:: mmap.PAGESIZE] = b"1" * (2**26 // mmap.PAGESIZE)  # given back to the system, which malloc may not do
    highest = memory.so_far().host
    assert highest >= before + 2**25 and PeakMemory(CPU).so_far().host < highest
    assert Peak(3, None) | Peak(5, 2) == Peak(5, 2) and Peak() | Peak(None, 1) == Peak(None, 1)


def test_of_a_run(mvtec, tmp_path, monkeypatch, capsys):
    """Of the model that is kept, and of the time before an interruption too."""
    monkeypatch.chdir(tmp_path)
    words = [*SMALL_NET, "--meta_epochs", "2", "dataset", *SMALL_DATA, "-d", "nut", "mvtec", str(mvtec)]

    def stop(*given, write=train.write_state):
        write(*given[:-1], 1000.0)
        raise Interrupted(2)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(train, "write_state", stop)
        main.main(words, standalone_mode=False)
    main.main(words, standalone_mode=False)
    run = tmp_path / "results/project/group/test"
    (row,) = pd.read_csv(run / "cost.csv").iloc[:1].to_dict("records")
    model = load(run / "models/0/mvtec_nut").detector
    assert row["parameters"] == sum(own.numel() for own in model.parameters())
    tensors = [*model.parameters(), *model.buffers()]
    assert row["model_mb"] == pytest.approx(sum(own.nbytes for own in tensors) / 1e6, abs=0.01)
    assert 1000 < row["fit_seconds"] < 2000 and row["ms_from_file"] > row["ms_from_features"] > 0
    assert "seconds" not in (run / "results.csv").read_text() and "cost" not in (run / "config.json").read_text()
    capsys.readouterr()
    main.main(["report", str(run)], standalone_mode=False)
    assert f"{row['fit_seconds']:.1f}" in capsys.readouterr().out
    assert "million parameters" in (run / "report.html").read_text()
