"""What is copied to a device: once, or beside the work on what was copied before; by a GPU that is made up."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from fake_cuda import CUDA, fake_cuda

import backbones.devices as devices
from backbones import FeatureBank
from detection.anomaly_map import anomaly_maps

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch):
    """A GPU whose memory is the host's; what is asked of it, in order."""
    said = []
    streams = {"own": None, "now": "own"}

    class Event:
        def __init__(self):
            self.number = sum(isinstance(one, Event) for one in said)
            said.append(self)

    @contextmanager
    def within(stream):
        streams["now"], before = "beside", streams["now"]
        yield
        streams["now"] = before

    def pinned(tensor):
        said.append("pin")
        return tensor.clone()

    to = torch.Tensor.to

    def sent(tensor, *given, **options):
        if given != (GPU,):
            return to(tensor, *given, **options)
        assert options == {"non_blocking": True} and streams["now"] == "beside"
        said.append("send")
        return tensor.clone()

    own = SimpleNamespace(wait_event=lambda event: said.append(("wait", event.number)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: SimpleNamespace(record_event=Event))
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: own)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: said.append("held"))
    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: False)
    monkeypatch.setattr(torch.Tensor, "to", sent)
    return said


def test_the_next_batch_is_on_its_way_before_one_is_used(gpu):
    """And each is waited for by itself, and held until the work on it is done."""
    batches = torch.arange(6.0).split(2)
    found = []
    for batch in devices.sent_ahead(batches, GPU):
        found.append(batch)
        gpu.append("used")
    assert torch.equal(torch.stack(found), torch.stack(batches))
    order = [one if isinstance(one, str | tuple) else ("copied", one.number) for one in gpu]
    assert order == [
        *["pin", "send", ("copied", 0), "pin", "send", ("copied", 1), ("wait", 0), "held", "used"],
        *["pin", "send", ("copied", 2), ("wait", 1), "held", "used", ("wait", 2), "held", "used"],
    ]
    assert list(devices.sent_ahead([], GPU)) == []


@pytest.mark.parametrize("place", ["host", "disk"])
@pytest.mark.parametrize("order", [None, [4, 0, 3, 3, 1]])
def test_a_bank_beside_a_gpu_gives_its_batches(gpu, monkeypatch, place, order):
    bank = FeatureBank((5, 2, 3), torch.bfloat16, place, CPU)
    bank.fill([torch.arange(30.0, dtype=torch.bfloat16).view(5, 2, 3)])
    expected = list(bank.batches(2, order))
    bank.device = GPU
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *given, pin_memory, **options: empty(*given, **options))
    found = list(bank.batches(2, order))
    assert gpu.count("send") == 3
    for own, other in zip(found, expected, strict=True):
        assert own.dtype == torch.bfloat16 and torch.equal(own, other)


def test_an_order_is_brought_to_a_bank_once(monkeypatch):
    bank = FeatureBank((5, 2), torch.float32, "device", CPU)
    bank.fill([torch.arange(10.0).view(5, 2)])
    moved, to = [], torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda own, *given: moved.append(own.dtype) or to(own, *given))
    assert torch.equal(torch.cat(list(bank.batches(2, [3, 1, 4, 0, 2]))), bank.features[[3, 1, 4, 0, 2]])
    assert moved.count(torch.int64) == 1


def test_host_memory_without_a_gpu_is_copied_plainly():
    tensor = torch.ones(3)
    assert devices.to_device(tensor, CPU) is tensor
    assert devices.to_device(tensor, torch.device("meta")).device.type == "meta"


def test_matrices_are_copied_to_a_device_once():
    """What is only said to lie there is copied again; what inference makes can be trained with."""
    made = []
    kept = devices.kept_on_device(lambda size: made.append(size) or torch.ones(size))
    assert kept(CPU, 3) is kept(CPU, 3) and made == [3]
    meta = torch.device("meta")
    assert kept(meta, 3) is kept(meta, 3) and kept(meta, 3).device == meta
    with fake_cuda():
        assert kept(CUDA, 3) is not kept(CUDA, 3) and kept(CUDA, 3).device == CUDA
    assert made == [3]
    with torch.inference_mode():
        kept(CPU, 4)
    (kept(CPU, 4) * torch.ones(4, requires_grad=True)).sum().backward()
    for size in range(100, 100 + devices.KEPT):
        kept(CPU, size)
    assert kept(CPU, 3) is not None and made.count(3) == 2  # those that were kept were let go


def test_anomaly_maps_copy_their_matrices_once(monkeypatch):
    scores = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    first = anomaly_maps(scores, (33, 34))
    monkeypatch.setattr("scipy.ndimage.gaussian_filter1d", None)
    monkeypatch.setattr(torch.Tensor, "to", None)
    assert torch.equal(anomaly_maps(scores, (33, 34)), first)
