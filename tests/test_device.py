"""Every detector on a device of its own, a fake one that needs no GPU (fake_cuda.py); what is chosen for its sake."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL, small
from fake_cuda import CUDA, fake_cuda
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

import backbones
import main
from backbones import Alignment, FeatureBank
from backbones.centres import Centres
from backbones.features import parts, shape_of, types_of
from backbones.resizing import by_matrices, resized
from detection import Normal
from detection.anomaly_map import anomaly_maps
from detection.detector import autocast
from detection.training import learn
from detection.whitening import whitening
from experiment.use.export import Exported
from methods import DETECTORS, cfa, logicrd

SIDE = 32
OTHERS = {  # settings that compute what the smallest ones do not
    "net": {"auto_noise": 0.5, "mix_noise": 2, "difference_noise": 0.5, "ensemble": 2, "ema": 0.9, "whiten": 0.1},
    "cfa": {"whiten": 0.1, "gamma_c": 2, "align_maps": True},
    "patchcore": {"whiten": 0.1, "reweight": 3, "anomaly_scorer_num_nn": 2},
    "rd": {"align_maps": True},
    "efficientad": {"size": "m", "penalty_images": "off"},
    "stpm": {"align_maps": True},
    "logicrd": {"no_gse": True},
    "reconpatch": {"whiten": 0.1, "sigma": 1.0},
    "cpr": {"kind": "object", "align_maps": True},
    "template": {"align": "translation", "score": "nearest", "search": 1},
    "frequency": {"mode": "whiten"},
    "lowrank": {"of": "image"},
    "gaussian": {"of": "patches", "components": 2, "choose": "smallest", "patchsize": 3, "stride": 2},
    "oneclass": {"machine": "gaussian", "whiten": 0.0, "align_maps": True},
    "sparse": {"score": "error", "brightness": True},
    "fastflow": {"align_maps": True, "norm": "cell", "score_top_k": 5},
    "msflow": {"align_maps": True, "score_share": 0.5},
    "multimodal": {"dropout": 0.1},
}
PRODUCTS = {"matmul", "__matmul__", "mm", "bmm", "linear", "einsum"}


def build(command, **options):
    """The detector in its smallest setting."""
    name, *words = small(command)
    own = main.main.get_command(None, name)
    config = own.invoke(own.make_context(name, words))[0]
    (backbone,) = config.backbones
    source = backbones.load(backbone.name, config.backbone_weights)
    return DETECTORS[command](source, backbone.layers, (SIDE, SIDE), **{**config.options, **options})


class Batches:
    """All of a bank in batches of two."""

    def __init__(self, bank):
        self.bank = bank

    def __len__(self):
        return len(self.bank) // 2

    def __iter__(self):
        return self.bank.batches(2)


@pytest.mark.parametrize("kind", ["smallest", "other"])
@pytest.mark.parametrize("command", SMALL)
def test_training_evaluation_and_export(command, kind):
    """Mixing devices is an error; images come from the CPU, exports are for it."""
    images, unseen = torch.randn(4, 3, SIDE, SIDE), torch.randn(4, 3, SIDE, SIDE)
    options = OTHERS[command] if kind == "other" else {}
    with fake_cuda():
        detector = build(command, **options).to(CUDA)
        embeddings = detector.embed(images)
        bank = FeatureBank(shape_of(len(images), embeddings), types_of(embeddings), "host", CUDA)
        bank.fill([embeddings])
        assert {own.device.type for own in parts(bank.features)} == {"cpu"}
        assert {own.device for own in parts(embeddings)} == {CUDA}
        before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
        training = detector.training_on(Normal(Batches(bank)))
        first, *_ = training
        assert first.loss == first.loss or training.trainer is None
        state = detector.state_dict()
        learned = {name for name, tensor in state.items() if tensor.device == CUDA and tensor.is_floating_point()}
        assert any(not torch.equal(state[name], before[name]) for name in learned) == (detector.passes > 0)
        scored, predicted = detector.score(embeddings), detector.predict(unseen)
        for one in (scored, predicted):
            assert (one.scores.device, one.maps.device) == (CUDA, CUDA)
        assert {one.device for one in scored.terms.values()} <= {CUDA}
        detector.load_state_dict(training.state_dict()["detector"])
        exported = Exported(SimpleNamespace(detector=detector, interest=None))
        expected = predicted.scores.cpu(), predicted.maps.cpu()
    pixels = (unseen.permute(0, 2, 3, 1) * exported.std.flatten() + exported.mean.flatten()).contiguous()
    with torch.no_grad():
        found = exported(pixels)
    assert {type(one) for one in found} == {torch.Tensor}
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-2 * expected[0].std().item())


@pytest.mark.parametrize("command", ["logicrd", "multimodal"])
def test_attention_learns_by_the_plain_kernel_alone(command, monkeypatch):
    """Of the fast ones on CUDA the gradients are another every time; a CPU keeps its own."""
    seen = []
    attention = F.scaled_dot_product_attention

    def watched(*args, **kwargs):
        fast = torch.backends.cuda.flash_sdp_enabled, torch.backends.cuda.mem_efficient_sdp_enabled
        seen.append((torch.is_grad_enabled(), any(one() for one in (*fast, torch.backends.cuda.cudnn_sdp_enabled))))
        return attention(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    with fake_cuda():
        detector = build(command, epochs=1).to(CUDA)
        detector.fit([torch.randn(2, 3, SIDE, SIDE)])
    assert (True, False) in seen
    assert (True, True) not in seen
    seen.clear()
    build(command, epochs=1).fit([torch.randn(2, 3, SIDE, SIDE)])
    assert (True, True) in seen


class WatchedProducts(TorchFunctionMode):
    """Whether TF32 was allowed in each product of float32 tensors."""

    def __init__(self):
        super().__init__()
        self.allowed = []

    def __torch_function__(self, func, _, args=(), kwargs=None):
        types = {one.dtype for one in tree_leaves(args) if isinstance(one, torch.Tensor)}
        if func.__name__ in PRODUCTS and torch.float32 in types:
            self.allowed.append(torch.backends.cuda.matmul.allow_tf32)
        return func(*args, **(kwargs or {}))


ALIGNED = Alignment([SimpleNamespace(centres=(Centres(0.0, n),) * 2) for n in (4.0, 8.0)])
FLOAT32 = {  # of each a function and its arguments
    "anomaly maps": lambda: (anomaly_maps, torch.randn(1, 4, 4), (8, 8)),
    "alignment": lambda: (ALIGNED.on_first, torch.randn(1, 2, 4, 4), 1, (8, 8)),
    "resizing": lambda: (by_matrices, torch.randn(1, 2, 4, 4), (8, 8)),
    "whitening": lambda: (whitening, [torch.randn(20, 4)], 0.1),
    "Mahalanobis": lambda: (logicrd.mahalanobis, torch.randn(2, 3), torch.zeros(3), torch.eye(3)),
    "descriptor": lambda: (cfa.Descriptor(4, 4), torch.randn(1, 2, 2, 4)),
    "whitened descriptor": lambda: (cfa.Descriptor(4, 4).start_as, torch.eye(4), torch.zeros(4)),
    "distances": lambda: (build("cfa"), torch.randn(1, 8, 8, 80)),
    "steps by distances": lambda: (next, cfa._Trainer(build("cfa")).steps([torch.randn(1, 8, 8, 80)])),
    "patch scores": lambda: (build("net").members[0].discriminator.eval().after_first, torch.randn(3, 8)),
    "a detector in float32": lambda: (build("net").score, torch.randn(1, 2, 2, 16)),
}


@pytest.fixture
def tf32():
    """TF32 is allowed; monkeypatch could not set these back."""
    places = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = True
    yield
    for place, own in zip(places, before, strict=True):
        place.allow_tf32 = own


@pytest.mark.parametrize("what", FLOAT32)
@pytest.mark.usefixtures("tf32")
def test_tf32_stays_out_of_what_promises_float32(what):
    function, *arguments = FLOAT32[what]()
    with WatchedProducts() as watched:
        function(*arguments)
    assert watched.allowed
    assert not any(watched.allowed)
    assert torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize(("precision", "allowed"), [(torch.float32, False), (torch.bfloat16, True)])
@pytest.mark.usefixtures("tf32")
def test_tf32_is_of_reduced_precisions(precision, allowed):
    """Of products and convolutions; in gradients too, and as it was afterwards where something fails."""
    seen = []

    class Watched(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
            return gradient

    weight = torch.ones(2, requires_grad=True)
    learn(Watched.apply(weight).sum(), [torch.optim.SGD([weight], 0.1)], precision)
    assert seen == [(allowed, allowed)]
    with pytest.raises(ZeroDivisionError), autocast(torch.device("cpu"), precision):
        assert torch.backends.cudnn.allow_tf32 is allowed
        raise ZeroDivisionError
    assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(("size", "grid"), [((3, 5), (6, 10)), ((4, 4), (9, 7)), ((8, 6), (3, 4)), ((1, 2), (5, 5))])
def test_resizing_by_matrices(size, grid):
    """As F.interpolate, gradients too; on a CPU it is that."""
    maps = torch.randn(2, 3, *size, dtype=torch.float32, requires_grad=True)
    expected = F.interpolate(maps, size=grid, mode="bilinear", align_corners=False)
    found = by_matrices(maps, grid)
    torch.testing.assert_close(found, expected)
    direction = torch.randn(expected.shape)
    gradients = (torch.autograd.grad((one * direction).sum(), maps)[0] for one in (found, expected))
    torch.testing.assert_close(*gradients)
    assert torch.equal(resized(maps, grid), expected)
    assert by_matrices(maps.bfloat16(), grid).dtype == torch.bfloat16


def test_no_map_is_resized_with_gradients_that_differ(monkeypatch):
    """On a device: F.interpolate draws no gradient there."""
    drawn = []
    interpolate = F.interpolate

    def watched(maps, *args, **kwargs):
        drawn.append(maps.requires_grad or kwargs.get("mode") == "bilinear")
        return interpolate(maps, *args, **kwargs)

    monkeypatch.setattr(F, "interpolate", watched)
    with fake_cuda():
        for command, options in (("logicrd", {}), ("multimodal", {}), ("net", {"train_backbone": True})):
            build(command, **options).to(CUDA).fit([torch.randn(2, 3, SIDE, SIDE)])
    assert not any(drawn)
    assert drawn
