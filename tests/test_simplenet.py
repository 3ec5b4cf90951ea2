"""The model, the noise, training and scoring: golden arrays, then each branch against the equation it implements."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

import backbones
from detection import MovingAverage, Normal
from detection.anomaly_map import anomaly_maps
from detection.whitening import whitening
from errors import DataError, UsageError
from simplenet import Adaptor, Discriminator, SimpleNet, discrimination_loss
from simplenet.anomalous_features import FeatureNoise, Noise, NoiseSource
from simplenet.model import Member, compose
from simplenet.training import POOL, Trainer

GOLDEN = np.load(Path(__file__).parent / "golden" / "simplenet_golden.npz")
META = json.loads(GOLDEN["meta"].tobytes())


def golden(name):
    return torch.from_numpy(GOLDEN[name])


def golden_models():
    """Adaptor and discriminator with the golden weights, which stand in module order."""
    adaptor, discriminator = Adaptor(32), Discriminator(32, hidden=24)
    for module, prefix in ((adaptor, "adaptor."), (discriminator, "discriminator.")):
        names = [name for name in GOLDEN.files if name.startswith(prefix)]
        module.load_state_dict(dict(zip(module.state_dict(), map(golden, names), strict=True)))
    return adaptor, discriminator


def random_detector(**options):
    settings = {"pretrain_embed_dimension": 24, "target_embed_dimension": 16, "dsc_hidden": 8, "pre_proj": 1, **options}
    return SimpleNet(backbones.load("resnet18", "random"), ["layer1", "layer2"], (64, 64), **settings)


class GoldenBackbone(torch.nn.Module):
    """Gives the golden layer maps for any images."""

    def forward(self, images, layers):
        return [golden(f"maps.{layer}") for layer in layers]


def test_golden_scores_and_maps():
    case = META["score_case"]
    size = tuple(GOLDEN["input_size"].tolist())
    dims = {k: case[k] for k in ("pretrain_embed_dimension", "target_embed_dimension", "patchsize")}
    detector = SimpleNet(GoldenBackbone(), case["layers"], size, dsc_hidden=24, pre_proj=1, **dims)
    detector.members[0] = Member(*golden_models())
    scores, maps = detector.predict(torch.zeros(2, 3, *size))
    np.testing.assert_allclose(scores.numpy(), GOLDEN["image_scores"], atol=1e-5, rtol=0)
    np.testing.assert_allclose(maps.numpy(), GOLDEN["anomaly_maps"], atol=1e-4, rtol=0)


def test_golden_training():
    adaptor, discriminator = golden_models()
    trainer = Trainer([Member(adaptor, discriminator)], FeatureNoise(0.0), META["dsc_margin"], 2e-4)
    features = golden("embed.0")
    for step in range(META["steps"]):
        noise = META["noise_std"] * golden("train.noise")[step]
        again = discrimination_loss(adaptor.train(), discriminator.eval(), features, noise, META["dsc_margin"])
        assert again.ndim == 0
        discriminator.train()
        found = trainer.step([features], Noise(noise)).loss.item()
        assert found == pytest.approx(GOLDEN["train.losses"][step], abs=1e-5)
    for module, prefix in ((adaptor, "trained.adaptor."), (discriminator, "trained.discriminator.")):
        names = [name for name in GOLDEN.files if name.startswith(prefix)]
        for found, name in zip(module.state_dict().values(), names, strict=True):
            np.testing.assert_allclose(found.numpy(), GOLDEN[name], atol=1e-4, rtol=0)


def test_loss_is_the_equation_with_shared_batch_statistics():
    torch.manual_seed(0)
    adaptor, discriminator = Adaptor(6), Discriminator(6, hidden=5)
    features, noise = torch.randn(40, 6), torch.randn(40, 6)
    found = discrimination_loss(adaptor, discriminator, features, noise, 0.5)
    q = adaptor(features)
    scores = discriminator(torch.cat([q, q + noise]))
    true, fake = scores[:40], scores[40:]
    expected = torch.relu(0.5 - true).mean() + torch.relu(0.5 + fake).mean()
    torch.testing.assert_close(found, expected)


def test_loss_names_wrong_shapes():
    with pytest.raises(ValueError, match=r"\[4, 6\] and noise \[4, 5\]"):
        discrimination_loss(Adaptor(6), Discriminator(6), torch.zeros(4, 6), torch.zeros(4, 5), 0.5)


@pytest.mark.parametrize(
    ("n_layers", "layer_type", "kinds"), [(0, 0, ""), (1, 2, "L"), (3, 0, "LLL"), (3, 1, "LLL"), (3, 2, "LALAL")]
)
def test_adaptor_layers(n_layers, layer_type, kinds):
    layers = Adaptor(6, n_layers, layer_type).layers
    assert "".join("L" if isinstance(layer, torch.nn.Linear) else "A" for layer in layers) == kinds
    assert all(layer.negative_slope == 0.2 for layer in layers if isinstance(layer, torch.nn.LeakyReLU))
    features = torch.randn(3, 6)
    assert Adaptor(6, n_layers, layer_type)(features).shape == features.shape
    if n_layers == 0:
        assert torch.equal(Adaptor(6, 0)(features), features)


@pytest.mark.parametrize(
    ("dim", "n_layers", "hidden", "widths"),
    [(90, 2, None, [60]), (90, 4, None, [60, 40, 26]), (90, 1, None, []), (90, 3, 20, [20, 20]), (90, 1, 20, [])],
)
def test_discriminator_widths(dim, n_layers, hidden, widths):
    discriminator = Discriminator(dim, n_layers, hidden)
    assert [block[0].out_features for block in discriminator.body] == widths
    assert discriminator.tail.bias is None
    assert discriminator(torch.randn(5, dim)).shape == (5, 1)


def test_xavier_normal_weights():
    torch.manual_seed(0)
    weight = Discriminator(600, hidden=400).body[0][0].weight
    assert weight.std().item() == pytest.approx((2 / 1000) ** 0.5, rel=0.01)
    inside = (weight.abs() < (2 / 1000) ** 0.5).float().mean().item()
    assert inside == pytest.approx(0.683, abs=0.01)  # of uniform weights it would be 0.577


def test_a_discriminator_cannot_shrink_to_nothing():
    with pytest.raises(UsageError, match="dsc_layers 9 shrink a width of 16"):
        Discriminator(16, 9)


def test_noise_has_the_std_asked_for():
    adapted = torch.zeros(20000, 8)
    noise = FeatureNoise(0.3).sample(adapted, None, NoiseSource("cpu", 0)).values(adapted)
    assert noise.shape == adapted.shape
    assert noise.std(dim=0).tolist() == pytest.approx([0.3] * 8, rel=0.03)


def test_mixed_noise_draws_a_scale_per_patch():
    noise = FeatureNoise(0.5, scales=3).sample(torch.zeros(30000, 2), None, NoiseSource("cpu", 0))
    torch.testing.assert_close(noise.values(noise.unit), noise.unit * noise.row * 0.5)
    values, counts = (0.5 * noise.row[:, 0]).unique(return_counts=True)
    assert values.tolist() == pytest.approx([0.5, 0.55, 0.605])
    assert (counts / 30000).tolist() == pytest.approx([1 / 3] * 3, abs=0.02)


def test_auto_noise_follows_each_dimension():
    adapted = torch.randn(5000, 3) * torch.tensor([1.0, 10.0, 0.0]) + 7
    noise = FeatureNoise(99.0, relative=0.25).sample(torch.zeros(5000, 3), adapted, NoiseSource("cpu", 0))
    expected = 0.25 * adapted.std(dim=0, correction=0)
    torch.testing.assert_close(noise.column, expected)
    torch.testing.assert_close(noise.values(adapted).std(dim=0), expected, rtol=0.05, atol=0)


def test_difference_noise_has_the_features_covariance():
    """Differences for the first share of the patches, Gaussian for the others; both with std * 1.1^k."""
    mixing = torch.tensor([[3.0, 0, 0], [1, 1, 0], [0, 2, 0.1]])
    adapted = torch.randn(40000, 3) @ mixing + 5
    noise = FeatureNoise(0.5, difference=0.25).sample(adapted, None, NoiseSource("cpu", 0))
    values = noise.values(adapted)
    assert values.shape == adapted.shape
    torch.testing.assert_close(torch.cov(values[:10000].T), 0.25 * torch.cov(adapted.T), rtol=0.05, atol=0.02)
    torch.testing.assert_close(torch.cov(values[10000:].T), 0.25 * torch.eye(3), rtol=0.05, atol=0.02)
    torch.testing.assert_close(values[5], 0.5 / 2**0.5 * (adapted[4] - adapted[3]))
    relative = FeatureNoise(99.0, scales=3, relative=0.5, difference=1.0).sample(
        adapted, adapted, NoiseSource("cpu", 0)
    )
    expected = relative.row * 0.5 / 2**0.5 * (adapted.roll(1, 0) - adapted.roll(2, 0))
    torch.testing.assert_close(relative.values(adapted), expected)


def test_whitening():
    """Zero mean, and the shrunk covariance of its definition; a dimension that never moves stays finite."""
    torch.manual_seed(0)
    features = torch.randn(4, 50, 40, 5) @ torch.randn(5, 5) + 100
    features[..., 3] = 7
    weight, bias = whitening(features, 0.1)
    flat = features.flatten(0, 2)
    adapted = flat @ weight.T + bias
    torch.testing.assert_close(adapted.mean(0), torch.zeros(5), atol=1e-3, rtol=0)
    found = torch.cov(adapted[:, [0, 1, 2, 4]].T)
    correlation = torch.corrcoef(flat[:, [0, 1, 2, 4]].T).double()
    inverse = torch.linalg.inv(torch.linalg.cholesky(correlation + 0.1 * torch.eye(4)))
    torch.testing.assert_close(found, (inverse @ correlation @ inverse.T).float(), atol=2e-3, rtol=0)
    assert torch.isfinite(weight).all()


def test_whiten_starts_the_adaptor_and_makes_the_features_scale_irrelevant():
    """With a vanishing rate the adaptor stays what whitening made it; features in another unit train alike."""
    embeddings = [torch.randn(2, 4, 4, 16) * torch.rand(16) + 3 for _ in range(4)]
    options = {"whiten": 0.1, "dsc_lr": 1e-3, "noise_std": 1.0, "gan_epochs": 3}
    frozen = random_detector(**options, adaptor_lr=1e-30)
    frozen.fit_embeddings(embeddings)
    torch.testing.assert_close(frozen.members[0].adaptor.layers[0].weight, whitening(embeddings, 0.1)[0])
    scores = []
    for unit in (1, 64):
        detector = random_detector(**options, adaptor_lr=1e-3)
        detector.fit_embeddings([unit * batch for batch in embeddings])
        scores.append(detector.score(unit * embeddings[0]).scores)
    torch.testing.assert_close(scores[0], scores[1], atol=0.02, rtol=0)
    assert not torch.allclose(scores[0], frozen.score(embeddings[0]).scores, atol=0.02)


def test_moving_average_covers_weights_and_batch_norm():
    """Against its definition, with the decay's growth over the first steps."""
    averaged, trained = torch.nn.BatchNorm1d(2), torch.nn.BatchNorm1d(2)
    average = MovingAverage(averaged, trained, 0.5)
    expected = {name: tensor.clone() for name, tensor in averaged.state_dict().items()}
    for step in range(1, 13):
        with torch.no_grad():
            trained.weight.fill_(step)
            trained.running_var.fill_(10 * step)
        average.update()
        decay = min(0.5, step / (step + 9))
        for name in ("weight", "running_var"):
            expected[name] = decay * expected[name] + (1 - decay) * trained.state_dict()[name]
            torch.testing.assert_close(averaged.state_dict()[name], expected[name])


def test_ema_trains_as_without_and_evaluates_the_average():
    embeddings = [torch.randn(2, 4, 4, 16) for _ in range(3)]
    losses = {}
    detectors = {}
    for ema in (0.0, 0.9):
        found = losses[ema] = []
        detectors[ema] = random_detector(ema=ema, meta_epochs=4, noise_std=1.0, dsc_lr=1e-2)
        detectors[ema].fit_embeddings(embeddings, lambda stats, found=found: found.append(stats.loss))
    assert losses[0.0] == losses[0.9]
    last, mean = (detectors[ema].score(embeddings[0]).scores for ema in losses)
    assert not torch.allclose(last, mean, atol=1e-3)
    trainer = random_detector(ema=0.9).training_on(Normal(embeddings)).trainer
    assert trainer.average.decay == 0.9


def test_warm_up_cosine_ends_with_training():
    """Its steps are those of all passes of all meta epochs."""
    detector = random_detector(warm_up_cosine=True, meta_epochs=5, gan_epochs=4)
    training = detector.training_on(Normal([torch.randn(2, 4, 4, 16)] * 3))
    list(training)
    factor = training.trainer.optimizers[0].param_groups[0]["lr"] / detector.options.dsc_lr
    assert factor == pytest.approx(0, abs=1e-9)  # after 60 steps
    (schedule, *_) = training.trainer.step_schedules
    assert schedule.lr_lambdas[0](40) == pytest.approx((1 + np.cos(np.pi * 40 / 60)) / 2)


def test_warm_up_cosine():
    """All rates rise over 30 steps and would be zero one step after the last."""
    parameters = Adaptor(2).parameters()
    trainer = Trainer(
        [Member(Adaptor(4), Discriminator(4))],
        FeatureNoise(0.1),
        0.5,
        1e-3,
        adaptor_lr=3e-3,
        warm_up_cosine=100,
        backbone_parameters=parameters,
    )
    rates = []
    for _ in range(100):
        rates.append([optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers])
        trainer.step([torch.randn(6, 4)])
    factors = [min(1, (k + 1) / 30) * (1 + np.cos(np.pi * k / 100)) / 2 for k in range(100)]
    np.testing.assert_allclose(rates, np.outer(factors, [1e-3, 3e-3, 1e-3]), rtol=1e-9)
    assert rates[-1][0] < 1e-6


def test_members_differ_learn_from_quarters_and_are_averaged():
    detector = random_detector(ensemble=3, gan_epochs=2)
    embeddings = torch.randn(2, 4, 4, 16)
    seen = []
    for member in detector.members:
        member.discriminator.body[0][1].register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    detector.fit_embeddings([embeddings])
    assert seen == [2 * 8] * 6  # a quarter of 32 patches, true and fake
    with torch.no_grad():
        flat = embeddings.flatten(0, 2)
        each = [-member.discriminator(member.adaptor(flat)).view(2, 4, 4) for member in detector.members]
        torch.testing.assert_close(detector.patch_scores(embeddings), torch.stack(each).mean(0))
    assert not torch.allclose(each[0], each[1])


def test_members_draw_batches_of_their_own():
    """As many steps as batches; in a pool no member sees an image twice, and members see different ones at a time."""
    trainer = Trainer(random_detector(ensemble=2).members, FeatureNoise(0.1), 0.5, 1e-3)
    taken = []
    trainer.step = lambda shares: taken.append([share[:, 0].long().tolist() for share in shares])
    batches = [torch.arange(4.0).view(4, 1, 1, 1).expand(4, 2, 4, 16) + 4 * i for i in range(POOL + 2)]
    list(trainer.steps(iter(batches)))
    assert [[len(share) for share in shares] for shares in taken] == [[8, 8]] * (POOL + 2)
    for member in (0, 1):
        images = [set(shares[member]) for shares in taken]
        assert all(1 < len(own) <= 4 for own in images)
        assert sum(map(len, images)) == len(set.union(*images))
        assert max(set.union(*images[:POOL])) < 4 * POOL <= min(set.union(*images[POOL:]))
        assert all(max(own) - min(own) > 4 for own in images[:POOL])  # batches mixed anew
    assert all(len({*one, *other}) > 4 for one, other in taken[:POOL])


def test_members_learn_as_each_would_alone():
    members = [Member(Adaptor(6), Discriminator(6, hidden=5)) for _ in range(2)]
    shares, noise = [torch.randn(20, 6), torch.randn(20, 6)], Noise(torch.randn(20, 6))
    others = copy.deepcopy(members)
    losses = [
        Trainer([member], FeatureNoise(0.1), 0.5, 1e-3).step([share], noise).loss.item()
        for member, share in zip(others, shares, strict=True)
    ]
    together = Trainer(members, FeatureNoise(0.1), 0.5, 1e-3).step(shares, noise)
    assert together.loss.item() == pytest.approx(sum(losses) / 2)
    for member, alone in zip(members, others, strict=True):
        for found, expected in zip(member.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(found.grad, expected.grad)
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("difference", [0.0, 0.5])
def test_differences_are_of_patches_in_random_order(difference):
    """Neighbours would be too much alike; without differences the order is no matter, and stays."""
    trainer = Trainer([Member(Adaptor(4), Discriminator(4))], FeatureNoise(0.1, difference=difference), 0.5, 1e-3)
    taken = []
    trainer.step = lambda shares: taken.extend(shares)
    batch = torch.arange(2 * 8 * 8 * 4.0).view(2, 8, 8, 4)
    list(trainer.steps([batch]))
    order = (taken[0][:, 0] / 4).long()
    assert torch.equal(order.sort().values, torch.arange(128))
    assert (order.diff() == 1).float().mean().item() == pytest.approx(1 - 2 * difference, abs=0.1)


def test_a_loss_that_is_not_finite_is_named():
    batches = [torch.randn(2, 4, 4, 16), torch.full((2, 4, 4, 16), float("inf")), torch.randn(2, 4, 4, 16)]
    detector = random_detector(meta_epochs=2)
    with pytest.raises(DataError, match="the loss is not finite from meta epoch 1, step 2 on; lower the learning rate"):
        detector.fit_embeddings(batches, lambda _: pytest.fail("a diverged detector is not evaluated"))


def test_score_top_k():
    embeddings = torch.randn(3, 4, 4, 16)
    flat = random_detector().patch_scores(embeddings).detach().flatten(1)
    for k, expected in ((1, flat.amax(1)), (3, flat.sort(1).values[:, -3:].mean(1)), (99, flat.mean(1))):
        torch.testing.assert_close(random_detector(score_top_k=k).eval().image_scores(flat.view(3, 4, 4)), expected)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cos_lr": True, "meta_epochs": 3, "warm_up_cosine": True}, "two schedules"),
        ({"whiten": 0.1, "pre_proj": 0}, "pre_proj must be 1 or more, not 0"),
        ({"ema": 0.9, "train_backbone": True}, "ema averages no backbone"),
    ],
)
def test_options_that_do_not_fit_each_other(options, words):
    with pytest.raises(UsageError, match=words):
        random_detector(**options)


def test_noise_is_seeded():
    def losses(seed):
        torch.manual_seed(0)
        trainer = Trainer([Member(Adaptor(6), Discriminator(6, hidden=5))], FeatureNoise(0.5), 0.5, 2e-4, seed=seed)
        features = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
        return [trainer.step([features]).loss.item() for _ in range(3)]

    assert losses(1) == losses(1)
    assert losses(1) != losses(2)


def test_step_shares_beyond_the_margin():
    adaptor, discriminator = golden_models()
    features, noise = golden("embed.0"), 0.5 * golden("train.noise")[0]
    with torch.no_grad():
        q = adaptor(features)
        true, fake = discriminator(torch.cat([q, q + noise])).chunk(2)
    stats = Trainer([Member(adaptor, discriminator)], FeatureNoise(0.5), 0.1, 2e-4).step([features], Noise(noise))
    assert stats.p_true.item() == pytest.approx((true >= 0.1).float().mean().item())
    assert stats.p_fake.item() == pytest.approx((fake < -0.1).float().mean().item())
    assert 0 < stats.p_true.item() < 1


def test_cosine_schedule():
    """One step per gan epoch, down to 0.4 of the rate after (meta_epochs - aed_meta_epochs) * gan_epochs."""
    trainer = Trainer([Member(Adaptor(4), Discriminator(4))], FeatureNoise(0.1), 0.5, 1e-3, cosine_epochs=6)
    rates = []
    for _ in range(7):
        trainer.step([torch.randn(6, 4)])
        rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        trainer.end_pass()
    expected = [0.4e-3 + 0.6e-3 * (1 + np.cos(np.pi * k / 6)) / 2 for k in range(7)]
    assert rates == pytest.approx(expected)
    detector = random_detector(cos_lr=True, meta_epochs=5, gan_epochs=3, aed_meta_epochs=2)
    assert detector.training_on(Normal([torch.randn(2, 4, 4, 16)])).trainer.epoch_schedule.T_max == 9


def test_cos_lr_needs_epochs():
    with pytest.raises(UsageError, match="not 2 and 2"):
        random_detector(cos_lr=True, meta_epochs=2, aed_meta_epochs=2)


def test_optimizers():
    trainer = Trainer(
        [Member(Adaptor(4), Discriminator(4))],
        FeatureNoise(0.1),
        0.5,
        3e-4,
        backbone_parameters=Adaptor(2).parameters(),
    )
    found = [(type(o).__name__, o.param_groups[0]["lr"], o.param_groups[0]["weight_decay"]) for o in trainer.optimizers]
    assert found == [("Adam", 3e-4, 1e-5), ("AdamW", 1e-4, 0.01), ("AdamW", 1e-3, 0.01)]
    assert len(Trainer([Member(Adaptor(4, 0), Discriminator(4))], FeatureNoise(0.1), 0.5, 3e-4).optimizers) == 1


@pytest.mark.parametrize(
    ("grid", "size", "sigma"), [((6, 6), (48, 48), 4.0), ((5, 9), (40, 31), 4.0), ((3, 2), (3, 70), 2.5)]
)
def test_maps_equal_interpolate_and_scipy(grid, size, sigma):
    scores = torch.randn(3, *grid)
    upsampled = F.interpolate(scores[:, None], size=size, mode="bilinear", align_corners=False)[:, 0].numpy()
    expected = np.stack([gaussian_filter(m, sigma) for m in upsampled])
    np.testing.assert_allclose(anomaly_maps(scores, size, sigma).numpy(), expected, atol=1e-5)


def test_fit_and_predict():
    images = [torch.randn(2, 3, 64, 64) for _ in range(3)]
    detector = random_detector(meta_epochs=2, gan_epochs=3)
    before = {k: v.clone() for k, v in detector.state_dict().items()}
    backbone = [p.clone() for p in detector.backbone.parameters()]
    epochs = []

    def on_epoch(stats):
        assert not detector.training
        epochs.append(stats)
        detector.predict(images[0])

    detector.fit(images, on_epoch)
    assert [e.meta_epoch for e in epochs] == [1, 2]
    assert detector.passes == 6
    assert int(detector.state_dict()["members.0.discriminator.body.0.1.num_batches_tracked"]) == 6 * 3
    assert all(not torch.equal(v, before[k]) for k, v in detector.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(backbone, detector.backbone.parameters(), strict=False))
    scores, maps = detector.predict(torch.cat(images))
    assert scores.shape == (6,)
    assert maps.shape == (6, 64, 64)
    one = detector.predict(images[1])
    torch.testing.assert_close(scores[2:4], one.scores)


def test_image_score_is_the_highest_patch_score():
    detector = random_detector()
    embeddings = detector.embed(torch.randn(2, 3, 64, 64))
    assert embeddings.shape == (2, 16, 16, 16)
    with torch.no_grad():
        (member,) = detector.eval().members
        expected = -member.discriminator(member.adaptor(embeddings.flatten(0, 2))).view(2, -1)
    torch.testing.assert_close(detector.score(embeddings).scores, expected.amax(dim=1))


def test_state_dict_round_trip_without_the_frozen_backbone():
    detector, other = random_detector(seed=1), random_detector(seed=2)
    images = torch.randn(2, 3, 64, 64)
    detector.fit([images])
    assert not any(name.startswith("backbone") for name in detector.state_dict())
    assert not torch.equal(other.predict(images).maps, detector.predict(images).maps)
    other.load_state_dict(detector.state_dict())
    assert torch.equal(other.predict(images).maps, detector.predict(images).maps)
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({})


def test_trained_backbone_is_a_copy_that_learns_and_is_saved():
    shared = backbones.load("resnet18", "random")
    images = torch.randn(2, 3, 64, 64)
    before = shared(images, ["layer1", "layer2"])
    options = {"pretrain_embed_dimension": 24, "target_embed_dimension": 16, "train_backbone": True}
    detector = SimpleNet(shared, ["layer1", "layer2"], (64, 64), **options)
    detector.fit([images])
    assert all(torch.equal(a, b) for a, b in zip(before, shared(images, ["layer1", "layer2"]), strict=True))
    assert not torch.allclose(before[0], detector.backbone(images, ["layer1", "layer2"])[0])
    assert any("running_mean" in name for name in detector.state_dict() if name.startswith("backbone."))
    other = SimpleNet(shared, ["layer1", "layer2"], (64, 64), seed=3, **options)
    other.load_state_dict(detector.state_dict())
    assert torch.equal(other.predict(images).scores, detector.predict(images).scores)


def test_frozen_backbone_stays_in_eval_mode():
    detector = random_detector()
    detector.fit([torch.randn(2, 3, 64, 64)])
    detector.backbone.train()  # by whoever else has it
    detector.train()
    assert detector.members.training
    assert not any(module.training for module in detector.backbone.modules())
    for own in (detector, copy.deepcopy(detector)):  # copies of traced networks forget their mode
        assert not any(module.training for module in own.eval().modules())


def test_trained_backbone_follows():
    detector = random_detector(train_backbone=True)
    detector.fit([torch.randn(2, 3, 64, 64)])
    for mode in (True, False):
        assert all(module.training is mode for module in detector.train(mode).modules())


def test_the_loss_that_is_read_is_trained(monkeypatch):
    """A step calls discrimination_loss once per member and goes down its gradient; twice the loss is another step."""
    members = [Member(Adaptor(6), Discriminator(6, hidden=5)) for _ in range(2)]
    shares, noise = [torch.randn(20, 6), torch.randn(20, 6)], Noise(torch.randn(20, 6))
    others = copy.deepcopy(members)
    loss = Trainer(members, FeatureNoise(0.1), 0.5, 1e-3).step(shares, noise).loss
    monkeypatch.setattr("simplenet.training.discrimination_loss", lambda *args: 2 * discrimination_loss(*args))
    assert Trainer(others, FeatureNoise(0.1), 0.5, 1e-3).step(shares, noise).loss == 2 * loss
    for found, single in zip(others, members, strict=True):
        torch.testing.assert_close(found.adaptor.layers[0].weight.grad, 2 * single.adaptor.layers[0].weight.grad)


def test_loss_of_other_networks():
    """Modules that are not ours are not composed, nor looked into."""
    adaptor, discriminator = torch.nn.Linear(6, 6), torch.nn.Sequential(torch.nn.Linear(6, 3), torch.nn.Linear(3, 1))
    features, noise = torch.randn(40, 6), torch.randn(40, 6)
    q = adaptor(features)
    expected = torch.relu(0.5 - discriminator(q)).mean() + torch.relu(0.5 + discriminator(q + noise)).mean()
    torch.testing.assert_close(discrimination_loss(adaptor, discriminator, features, noise, 0.5), expected)


@pytest.mark.parametrize("layer_type", [0, 2])
@pytest.mark.parametrize(("n_layers", "dsc_layers", "hidden"), [(0, 2, 8), (1, 2, 8), (1, 1, None), (3, 3, None)])
def test_composed_step_has_the_plain_steps_gradients(n_layers, dsc_layers, hidden, layer_type):
    """Every kind of noise; with activations in the adaptor (type 2, three layers) nothing is composed."""
    torch.manual_seed(0)
    features, unit = torch.randn(60, 12, dtype=torch.float64), torch.randn(36, 12, dtype=torch.float64)
    adaptor = Adaptor(12, n_layers, layer_type).double()
    discriminator = Discriminator(12, dsc_layers, hidden).double()
    noise = Noise(
        unit, column=torch.rand(12, dtype=torch.float64), row=1.1 ** torch.randint(3, (60, 1)), difference=0.7
    )
    parameters = [*adaptor.parameters(), *discriminator.parameters()]
    q = adaptor(features)
    true, fake = discriminator(torch.cat([q, q + noise.values(q)])).chunk(2)
    plain = torch.relu(0.5 - true).mean() + torch.relu(0.5 + fake).mean()
    composed = discrimination_loss(adaptor, discriminator, features, noise, 0.5)
    assert (compose(adaptor, discriminator) is None) == (layer_type == 2 and n_layers == 3)
    torch.testing.assert_close(composed, plain)
    expected = torch.autograd.grad(plain, parameters)
    for found, wanted in zip(torch.autograd.grad(composed, parameters), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_noise_does_not_depend_on_the_number_of_threads():
    threads = torch.get_num_threads()
    try:
        found = []
        for n in (1, 2):
            torch.set_num_threads(n)
            found.append(NoiseSource("cpu", 5).normal((37, 11), torch.float32))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)
    assert found[0].std().item() == pytest.approx(1, abs=0.2)
    assert len(found[0].unique()) == 37 * 11


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_reduced_precision_follows_float32(precision):
    """Same noise distribution and weights: losses and scores agree to a few parts in a hundred."""
    images = [torch.randn(2, 3, 64, 64) for _ in range(2)]
    losses, predictions = [], []
    for p in (torch.float32, precision):
        detector = random_detector(precision=p, gan_epochs=3, noise_std=0.5)
        assert detector.embed(images[0]).dtype == p
        detector.fit(images, lambda stats: losses.append(stats.loss))
        predictions.append(detector.predict(images[0]))
        assert predictions[-1].maps.dtype == torch.float32
        assert all(v.dtype == torch.float32 for v in detector.state_dict().values() if v.is_floating_point())
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    torch.testing.assert_close(predictions[1].maps, predictions[0].maps, atol=0.1, rtol=0)


def test_bf16_scores_do_not_tie():
    """Scores keep float32's digits, since images that tie cannot be ranked."""
    detector = random_detector(precision=torch.bfloat16)
    scores = detector.score(torch.randn(400, 2, 2, 16)).scores
    assert len(scores.unique()) > 390
