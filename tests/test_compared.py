"""A discriminator that compares patches with a memory of normal ones (`net --memory`), against plain computations."""

import copy
import json
import shutil

import pytest
import torch
from conftest import SMALL_DATA, SMALL_NET
from fake_cuda import CUDA, fake_cuda
from test_export import export
from test_resume import folder, outputs
from test_simplenet import random_detector

import main
import simplenet
from detection import Normal
from detection.coreset import random_rows
from detection.derived import Derived
from detection.neighbours import closest
from errors import DataError, UsageError
from simplenet import Adaptor, Discriminator, discrimination_loss
from simplenet.anomalous_features import FeatureNoise, Noise
from simplenet.memory import Memory
from simplenet.model import Member
from simplenet.training import Trainer

MEMORY = "--memory 20 --distance 0.3 --bank_size 30 --ensemble 2 --ema 0.9 --whiten 0.1".split()


def memory_of(patches):
    memory = Memory(*patches.shape)
    memory.patches.copy_(patches)
    return memory


def plain_nearest(features, centres):
    return torch.cdist(features, centres, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)


def plain_scores(discriminator, adapted, memory, nearest):
    """(11) as it reads: all three inputs side by side."""
    difference = adapted - memory[nearest]
    inputs = torch.cat([adapted, difference, difference.norm(dim=1, keepdim=True)], dim=1)
    return discriminator.after_first(discriminator.first(inputs))


@pytest.mark.parametrize(("n_layers", "dsc_layers", "hidden"), [(0, 2, 8), (1, 2, None), (1, 1, None), (2, 3, 8)])
def test_the_loss_and_its_gradients_are_those_of_the_plain_inputs(n_layers, dsc_layers, hidden):
    """Of every kind of noise; the memory goes through the adaptor; what is true keeps the nearest that it had first."""
    torch.manual_seed(0)
    features, adaptor = torch.randn(60, 12), Adaptor(12, n_layers)
    memory = memory_of(torch.randn(30, 12))
    discriminator = Discriminator(12, dsc_layers, hidden, compares=True)
    assert discriminator.first.in_features == 25
    noise = Noise(torch.randn(36, 12), column=torch.rand(12), row=1.1 ** torch.randint(3, (60, 1)), difference=0.7)
    parameters = [*adaptor.parameters(), *discriminator.parameters()]
    q = adaptor(features)
    fake, known = q + noise.values(q), adaptor(memory.patches)
    nearest = plain_nearest(features, memory.patches), plain_nearest(fake, known)
    true, fake = plain_scores(discriminator, torch.cat([q, fake]), known, torch.cat(nearest)).chunk(2)
    plain = torch.relu(0.5 - true).mean() + torch.relu(0.5 + fake).mean()
    found = discrimination_loss(adaptor, discriminator, features, noise, 0.5, memory=memory)
    torch.testing.assert_close(found, plain)
    gradients = torch.autograd.grad(found, parameters)
    for own, wanted in zip(gradients, torch.autograd.grad(plain, parameters), strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-5)
        assert own.abs().sum() > 0


@pytest.mark.parametrize("block", [50, 2**24])
def test_the_nearest_is_found_whatever_the_features_scale_and_mean(block, monkeypatch):
    """In blocks too; in bfloat16 what is found instead lies hardly farther."""
    monkeypatch.setattr("detection.neighbours.BLOCK", block)
    features, centres = 300 + torch.randn(40, 24) / 50, 300 + torch.randn(25, 24) / 50
    wanted = plain_nearest(features.double(), centres.double())
    found = closest(features, centres)
    assert (found == wanted).float().mean() > 0.95
    with torch.autocast("cpu", torch.bfloat16):
        rough = closest(features, centres)
    distances = [(features - centres[own]).norm(dim=1) for own in (rough, wanted)]
    assert (distances[0] / distances[1]).max() < 1.02


@pytest.mark.parametrize(("memory", "name"), [(9, "difference_table"), (0, "compose")])
def test_what_follows_from_weights_is_made_once_per_weights(memory, name, monkeypatch):
    """The memory's table, and the composed layer: single images share it, and see what a step has made of it."""
    made = []
    real = getattr(simplenet.model, name)
    monkeypatch.setattr(simplenet.model, name, lambda *own: made.append(1) or real(*own))
    detector, image = random_detector(memory=memory), torch.randn(1, 4, 4, 16)
    detector.fit_embeddings([torch.randn(2, 4, 4, 16)])
    made.clear()
    first = detector.score(image).scores
    assert torch.equal(detector.score(image).scores, first)
    assert len(made) == 1
    with torch.no_grad():
        detector.members[0].discriminator.first.weight.mul_(2)
    fresh = copy.deepcopy(detector)
    fresh.members[0]._known = Derived()
    assert torch.equal(detector.score(image).scores, fresh.score(image).scores)
    assert not torch.equal(detector.score(image).scores, first)


def test_a_patch_of_the_memory_has_finite_gradients():
    """Its distance is 0, where a length has no slope."""
    features = torch.randn(20, 6)
    adaptor, discriminator = Adaptor(6), Discriminator(6, hidden=5, compares=True)
    discrimination_loss(
        adaptor, discriminator, features, torch.randn(20, 6), 0.5, memory=memory_of(features)
    ).backward()
    assert all(own.grad.isfinite().all() for own in adaptor.parameters())


def test_members_share_the_memory_and_are_averaged():
    detector = random_detector(ensemble=3, memory=9, gan_epochs=2)
    embeddings = torch.randn(2, 4, 4, 16)
    detector.fit_embeddings([embeddings])
    flat = embeddings.flatten(0, 2)
    own = detector.memory.patches
    assert {tuple(row) for row in own.tolist()} <= {tuple(row) for row in flat.tolist()}
    with torch.no_grad():
        nearest = plain_nearest(flat, own)
        each = [-plain_scores(m.discriminator, m.adaptor(flat), m.adaptor(own), nearest) for m in detector.members]
        found = detector.patch_scores(embeddings)
    torch.testing.assert_close(found, torch.stack(each).mean(0).view(2, 4, 4), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(each[0], each[1])


@pytest.mark.parametrize("bank_size", [0, 20])
def test_distance_is_added_to_scores(bank_size):
    """(14), in what the memory sees: whitened features; a larger bank begins with the memory."""
    embeddings, new = torch.randn(2, 4, 4, 16), 3 * torch.randn(1, 4, 4, 16)
    plain = random_detector(memory=9, whiten=0.1)
    far = random_detector(memory=9, whiten=0.1, distance=0.5, bank_size=bank_size)
    for detector in (plain, far):
        detector.fit_embeddings([embeddings])
    assert len(far.memory.patches) == max(9, bank_size)
    assert torch.equal(far.memory.patches[:9], plain.memory.patches)
    distances = torch.cdist(far.memory.seen(new.flatten(0, 2)), far.memory.patches).min(dim=1).values
    with torch.no_grad():
        expected = plain.patch_scores(new) + 0.5 * distances.view(1, 4, 4)
        torch.testing.assert_close(far.patch_scores(new), expected, rtol=1e-4, atol=1e-4)


def test_training_images_are_scored_as_new_ones():
    """By the memory without their own patches; an image by itself is not forgotten, and neither is any afterwards."""
    embeddings = torch.randn(5, 4, 4, 16)
    detector = random_detector(memory=40, whiten=0.1, distance=0.5, bank_size=60)
    detector.fit_embeddings([embeddings])
    before = detector.score(embeddings)
    found = list(detector.scored_as_new(lambda: embeddings.split(3)))
    assert [len(own.scores) for own in found] == [3, 2]
    last = copy.deepcopy(detector)
    is_own = torch.cdist(last.memory.patches, last.memory.seen(embeddings[4].flatten(0, 1))).min(dim=1).values < 1e-2
    assert 0 < is_own.sum() < 40 and is_own[:40].any()
    last.memory.patches, last.memory.size = last.memory.patches[~is_own], int((~is_own[:40]).sum())
    torch.testing.assert_close(found[1].scores[1], last.score(embeddings[4:]).scores[0])
    assert (torch.cat([own.scores for own in found]) > before.scores + 0.1).all()
    assert torch.equal(detector.score(embeddings).scores, before.scores)
    (alone,) = detector.scored_as_new(lambda: [embeddings[4:]])
    assert alone.scores > before.scores[4]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"distance": 0.5}, "distance is that to the patches of a memory: set memory above 0"),
        ({"memory": 5, "bank_size": 9}, "bank_size is of the patches that distance is to: set distance above 0"),
    ],
)
def test_a_distance_is_to_a_bank(options, words):
    with pytest.raises(UsageError, match=words):
        random_detector(**options)


def test_no_features_scale_or_mean_matters_where_they_are_whitened():
    """Neither to the choice of patches nor to training, whose adaptor starts as the identity."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(4, 4, 4, 16, generator=generator)
    scale, shift = 10 ** torch.linspace(-0.5, 0.5, 16), torch.linspace(-50, 50, 16)
    found = []
    for features in (embeddings, embeddings * scale + scale * shift):
        detector = random_detector(memory=9, whiten=0.1, gan_epochs=3, noise_std=0.5, adaptor_lr=0.0015)
        detector.begin(Normal([features]))
        assert torch.equal(detector.members[0].adaptor.layers[0].weight, torch.eye(16))
        detector.fit_embeddings([features])
        found.append((detector.score(features).maps, detector.memory.patches))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)


def test_what_is_rare_in_training_is_remembered():
    """A kind of patch that makes up one of 2,000; as many at random would miss it more often than not."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(10, 4, 200, 16, generator=generator)
    embeddings[7, 2, 50:54] += 6
    memory = Memory(40, 16)
    memory.choose(embeddings.split(2), seed=0)
    assert (memory.patches.mean(1) > 3).sum() >= 1


def test_what_is_rare_in_training_is_normal():
    """Beside the discriminator without a memory, one with it gives a rare normal kind scores nearer to the common."""
    generator = torch.Generator().manual_seed(0)
    rare = 4 * torch.randn(16, generator=generator)
    embeddings = torch.randn(16, 8, 8, 16, generator=generator)
    embeddings[5, 3, 2:5] = 0.3 * embeddings[5, 3, 2:5] + rare
    new = torch.randn(2, 8, 8, 16, generator=generator)
    planted = rare + 0.3 * torch.randn(1, 2, 8, 16, generator=generator)
    gaps = []
    options = {"whiten": 0.1, "noise_std": 1.0, "gan_epochs": 30, "dsc_lr": 2e-3, "dsc_margin": 0.5}
    for memory in (0, 200):
        detector = random_detector(seed=1, memory=memory, **options)
        detector.fit_embeddings(embeddings.split(4))
        with torch.no_grad():
            common = detector.patch_scores(new)
            gaps.append(((detector.patch_scores(planted).mean() - common.mean()) / common.std()).item())
    assert gaps[1] < gaps[0] - 0.5


def test_fewer_patches_than_the_memory_takes():
    """All of them are in it, and its size is what the options say."""
    detector = random_detector(memory=100)
    embeddings = torch.randn(1, 4, 4, 16)
    detector.fit_embeddings([embeddings])
    assert detector.memory.patches.shape == (100, 16)
    kept, given = ({tuple(row) for row in own.tolist()} for own in (detector.memory.patches, embeddings.view(16, 16)))
    assert kept == given
    assert detector.score(embeddings).scores.isfinite().all()


def test_a_rare_patch_is_in_the_memory(monkeypatch):
    """One of all, wherever it is; of more patches than the candidates' bytes hold, so many are drawn."""
    embeddings = torch.randn(10, 100, 100, 6)
    embeddings[7, 3, 4] = 50
    memory = Memory(5, 6)
    memory.choose(list(embeddings.split(2)), 0)
    assert (memory.patches == 50).all(dim=1).any()
    drawn = []
    monkeypatch.setattr("simplenet.memory.random_rows", lambda *own: drawn.append(own[1]) or random_rows(*own))
    for most in (3, 80):
        monkeypatch.setattr("simplenet.memory.CANDIDATES_MEMORY", 4 * 6 * most)
        memory.choose(list(embeddings.split(2)), 0)
    assert drawn == [5, 80]


def test_off_has_the_weights_and_state_that_it_always_had():
    off = random_detector(seed=3)
    torch.manual_seed(3)
    expected = Member(Adaptor(16, 1), Discriminator(16, 2, 8)).state_dict()
    assert list(off.state_dict()) == [f"members.0.{name}" for name in expected]
    for name, own in expected.items():
        assert torch.equal(off.state_dict()[f"members.0.{name}"], own)
    assert off.passes == random_detector(memory=5).passes - 1 == 1


def test_training_goes_on_from_its_state():
    """The memory is part of it; what it was chosen from is not read again."""
    embeddings = [torch.randn(2, 4, 4, 16) for _ in range(3)]
    options = {"memory": 12, "meta_epochs": 4, "ema": 0.9, "ensemble": 2, "whiten": 0.1, "warm_up_cosine": True}
    whole, first, second = (random_detector(**options) for _ in range(3))
    whole.fit_embeddings(embeddings)
    training = iter(loop := first.training_on(Normal(embeddings)))
    next(training), next(training)
    state = copy.deepcopy(loop.state_dict())
    for _ in second.training_on(Normal(embeddings), state=state):
        pass
    assert all(torch.equal(own, whole.memory.state_dict()[name]) for name, own in second.memory.state_dict().items())
    assert torch.equal(second.score(embeddings[0]).maps, whole.score(embeddings[0]).maps)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_reduced_precision_follows_float32(precision):
    """In training, in scores, and with weights of few digits; a patch between two of the memory may take the other."""
    embeddings = [torch.randn(2, 8, 8, 16) for _ in range(2)]
    losses, detectors = [], []
    for own in (torch.float32, precision):
        detectors.append(random_detector(precision=own, memory=40, gan_epochs=3, noise_std=1.0))
        detectors[-1].fit_embeddings([batch.to(own) for batch in embeddings], lambda stats: losses.append(stats.loss))
        assert detectors[-1].memory.patches.dtype == torch.float32
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    exact, reduced = detectors
    reduced.load_state_dict(exact.state_dict())
    expected, found = (one.score(embeddings[0]).maps for one in detectors)
    assert found.dtype == torch.float32
    assert (found - expected).abs().median() < 0.02
    if precision == torch.float16:
        with torch.no_grad():
            expected = exact.patch_scores(embeddings[0])
            found = copy.deepcopy(exact).half().patch_scores(embeddings[0].half())
        assert (found - expected).abs().median() < 0.01


def test_everything_happens_on_the_device():
    """With fake CUDA tensors, mixing devices is an error; batches come from the CPU."""
    with fake_cuda():
        member = Member(Adaptor(6), Discriminator(6, hidden=4, compares=True)).to(CUDA)
        memory, features = Memory(5, 6).to(CUDA), torch.randn(7, 6).to(CUDA)
        memory.choose([torch.randn(2, 3, 6).to(CUDA)], 0)
        assert memory.patches.device == CUDA
        assert member(features, memory.patches, memory.nearest(features)).device == CUDA
        noise = torch.zeros(7, 6).to(CUDA)
        loss = discrimination_loss(member.adaptor, member.discriminator, features, noise, 0.5, memory=memory)
        assert loss.device == CUDA


def test_a_trained_backbone_has_no_memory():
    with pytest.raises(UsageError, match="memory keeps features as they were"):
        random_detector(memory=5, train_backbone=True)


def test_every_step_compares_with_the_memory():
    """Trainer gives it to the loss: another memory is another step."""
    features, noise = torch.randn(30, 6), Noise(torch.randn(30, 6))
    losses = set()
    for seed in (1, 2):
        torch.manual_seed(0)
        members = [Member(Adaptor(6), Discriminator(6, hidden=5, compares=True))]
        memory = memory_of(torch.randn(8, 6, generator=torch.Generator().manual_seed(seed)))
        losses.add(Trainer(members, FeatureNoise(0.1), 0.5, 1e-3, memory=memory).step([features], noise).loss.item())
    assert len(losses) == 2


def chain(mvtec, *net, run=()):
    words = [*run, "--precision", "fp32", *SMALL_NET, *net, "dataset", *SMALL_DATA, "-d", "bolt", "mvtec", str(mvtec)]
    main.main(words, standalone_mode=False)


@pytest.fixture(scope="module")
def trained(mvtec, tmp_path_factory):
    """A finished run's model; tests must not change it."""
    where = tmp_path_factory.mktemp("memory")
    chain(mvtec, *MEMORY, run=["--results_path", str(where / "results")])
    return folder(where) / "models/0/mvtec_bolt"


def test_an_export_gives_the_predictions(trained, tmp_path, capsys):
    """Export compares what it wrote with PyTorch to within 0.001, or writes nothing."""
    export(trained, "--out", tmp_path / "m.onnx")
    assert float(capsys.readouterr().out.rsplit(" ", 1)[1]) < 1e-3


def test_a_description_cannot_claim_another_size(trained, tmp_path):
    """Nor does an older description, which says nothing of a memory, fit a checkpoint with one."""
    model = shutil.copytree(trained, tmp_path / "model")
    written = json.loads((model / "model.json").read_text())
    assert simplenet.load(model).detector.memory.patches.shape == (30, 16)
    for claimed, words in [
        ({"memory": 50_000}, r"memory.patches is torch.float32 \[30, 16\], not torch.float32 \[50000, 16\]"),
        ({"bank_size": 40_000}, r"memory.patches is torch.float32 \[30, 16\], not torch.float32 \[40000, 16\]"),
        ({"memory": 60_000}, "--memory 60000 must be from 0 to 50000"),
        ({"memory": 0, "bank_size": 0, "distance": 0.0}, "does not fit"),
        ({"memory": True}, "memory is True"),
    ]:
        description = copy.deepcopy(written)
        description["options"] |= claimed
        (model / "model.json").write_text(json.dumps(description))
        with pytest.raises((DataError, UsageError), match=words):
            simplenet.load(model)


def test_an_older_model_reads_as_off(mvtec, tmp_path):
    chain(mvtec, run=["--results_path", str(tmp_path / "results")])
    path = folder(tmp_path) / "models/0/mvtec_bolt/model.json"
    description = json.loads(path.read_text())
    assert description["options"].pop("memory") == 0
    path.write_text(json.dumps(description))
    assert simplenet.load(path.parent).detector.memory is None


def test_a_grid_over_sizes_embeds_once(mvtec, tmp_path, monkeypatch, embedded):
    monkeypatch.chdir(tmp_path)
    chain(mvtec, run=["--grid", "memory=0,20"])
    assert embedded == ["mvtec_bolt"]
    off, on = outputs(folder(tmp_path) / "memory=0"), outputs(folder(tmp_path) / "memory=20")
    name = "models/0/mvtec_bolt/predictions.csv"
    assert off[name] != on[name]
