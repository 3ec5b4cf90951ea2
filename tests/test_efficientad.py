"""EfficientAD by the golden arrays: networks, losses, statistics and maps; its teachers and penalty images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL_DATA, small
from PIL import Image
from safetensors.torch import save_file
from test_cpr import patterned

import backbones
import main
from datasets import normalised
from detection import Normal
from errors import DataError, UsageError
from methods.efficientad import EfficientAD, _Trainer, recoloured
from methods.efficientad_equations import combined, drawn, hard_mean, mean_square, quantiles, terms
from methods.foreign import ForeignImages
from methods.pdn import PDN, grid_of
from methods.scene_autoencoder import SceneAutoencoder

GOLDEN = np.load(Path(__file__).parent / "golden" / "efficientad.npz")
META = json.loads(str(GOLDEN["meta"]))
TINY = 0.01  # of the paper's widths


def golden(name):
    return torch.from_numpy(np.asarray(GOLDEN[name])).float()


def images(height, width, *numbers):
    """Those of the golden arrays, see `images` of their meta."""
    c, y, x = np.ogrid[:3, :height, :width]
    made = [np.sin((0.05 + 0.01 * n) * (x + 1) * (c + 1)) * np.cos(0.07 * y + c + n) for n in numbers]
    return torch.from_numpy(np.stack(made)).float()


def standardised(outputs):
    """As of a detector that has the mean and the deviation of the golden arrays."""
    mean, deviation = (golden(f"teacher_{name}")[:, None, None] for name in ("mean", "std"))
    return (outputs - mean) / deviation


def filled(network, name):
    """With the weights of the golden arrays, in order."""
    numbers = META["weight_numbers_name_shape"][name]
    for own, (number, _, shape) in zip(network.parameters(), numbers, strict=True):
        own.data = patterned(tuple(shape), number)
    return network.eval()


def made(side=32, **options):
    return EfficientAD(
        backbones.load("pixels"),
        ["input"],
        (side, side),
        **{"teacher": "random", "padding": side < 33, "width": TINY, "epochs": 2, "penalty_images": "off", **options},
    )


@pytest.mark.parametrize(("size", "given"), [("s", (64, 48, 0, 1)), ("m", (48, 44, 2))])
def test_patch_description_networks(size, given):
    for padded in (False, True):
        network, expected = filled(PDN(size, 1.0, 8, padded), f"pdn_{size}"), golden(f"pdn_{size}_pad{int(padded)}")
        with torch.no_grad():
            found = network(images(*given))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(network(images(*given), slice(3, None)), found[:, 3:])
        assert grid_of(given[:2], padded) == expected.shape[2:]


def test_the_autoencoder():
    for grid, name in ((56, "ae_56"), (64, "ae_64_anomalib")):
        network = filled(SceneAutoencoder(8, (256, 256), (grid, grid)), "ae")
        with torch.no_grad():
            torch.testing.assert_close(network(images(256, 256, 3)), golden(name), rtol=1e-4, atol=1e-5)
    codes = []
    network.code.register_forward_hook(lambda _, __, output: codes.append(output.flatten()))
    network(images(256, 256, 3))
    torch.testing.assert_close(codes[0].detach(), golden("ae_code"), rtol=1e-4, atol=1e-5)


def test_losses_and_their_gradients():
    names = "student_plain", "student_augmented", "student_penalty", "autoencoder_augmented"
    plain, augmented, penalty, autoencoder = given = [golden(f"loss_{name}").requires_grad_() for name in names]
    teacher, other = (standardised(golden(f"loss_teacher_{name}")) for name in ("plain", "augmented"))
    found = terms(teacher, plain[:, :6], penalty[:, :6], other, autoencoder, augmented[:, 6:])
    for name, value in zip(("hard", "penalty", "ae", "stae"), found, strict=True):
        assert value.item() == pytest.approx(GOLDEN[f"loss_{name}"], rel=1e-5)
    assert found.loss.item() == pytest.approx(GOLDEN["loss_total"], rel=1e-5)
    found.loss.backward()
    for name, own in zip(names, given, strict=True):
        torch.testing.assert_close(
            own.grad, golden(f"grad_{name.removesuffix('_augmented') if 'auto' in name else name}")
        )


def test_hard_differences_are_counted_with_those_that_equal_the_quantile():
    """Of each image by itself."""
    values = torch.zeros(2, 1, 1, 1001)
    values[0, ..., :3] = torch.tensor([5.0, 4.0, 4.0])  # the quantile is the second highest
    values[1] += 7
    assert hard_mean(values).item() == pytest.approx(((5 + 4 + 4) / 3 + 7) / 2)


def test_mean_and_deviation_of_the_teacher():
    outputs = golden("norm_teacher_outputs")
    detector = made(width=6 / 384)
    detector.teacher = torch.nn.Identity()
    with torch.no_grad():
        detector.begin(Normal(outputs.split(2)))
    torch.testing.assert_close(detector.mean, golden("teacher_mean"), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(detector.deviation, golden("teacher_std"), rtol=1e-5, atol=1e-6)


def test_maps_and_their_quantiles():
    teacher, student, autoencoder = (golden(f"val_{name}") for name in ("teacher", "student", "autoencoder"))
    raw = mean_square(standardised(teacher) - student[:, :6]), mean_square(autoencoder - student[:, 6:])
    torch.testing.assert_close(
        torch.stack([own[-1] for own in raw]), torch.stack([golden(f"test_raw_{n}") for n in ("st", "ae")])
    )
    found = quantiles(torch.stack([own[:3].flatten() for own in raw]), (0.9, 0.995))
    torch.testing.assert_close(
        found.flatten(), golden("quantiles_st_start_st_end_ae_start_ae_end"), rtol=1e-5, atol=1e-5
    )
    both = combined(*raw, found)
    torch.testing.assert_close(both[-1], golden("test_combined"), rtol=1e-5, atol=1e-5)
    maps = drawn(both, 4, (70, 52))
    torch.testing.assert_close(maps[-1], golden("test_map"), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(maps[0], golden("val_map_0"), rtol=1e-5, atol=1e-5)
    assert maps[-1].max().item() == pytest.approx(GOLDEN["test_score"].item(), rel=1e-5)


def test_predictions_and_what_they_are_made_of():
    """By the quantiles of held-out images, else of those that it is trained on; zeros where cells are left out."""
    detector, train, held_out = made(64).eval(), torch.randn(2, 3, 64, 64), torch.randn(3, 3, 64, 64)
    kept = [detector.embed(own) for own in (train, held_out)]
    for normal, own in ((Normal([kept[0]], [kept[1]]), kept[1]), (Normal([kept[0]]), kept[0])):
        with torch.no_grad():
            detector.begin(normal)
            detector.settle(normal)
            raw = detector.raw_maps(own)
            torch.testing.assert_close(raw, detector._raw_maps(own), rtol=1e-4, atol=1e-4)  # of all images at once
        expected = quantiles(torch.stack([one.flatten() for one in raw]), (0.9, 0.995))
        torch.testing.assert_close(detector.quantiles, expected)
        scores, maps = detector.score(own)
        cells = F.interpolate(F.pad(combined(*raw, expected), [4] * 4).unsqueeze(1), size=64, mode="bilinear")[:, 0]
        torch.testing.assert_close(maps, cells)
        torch.testing.assert_close(scores, cells.amax((1, 2)))
    described = detector.described(detector._images(kept[0])).transpose(0, 1).flatten(1)
    torch.testing.assert_close(described.std(1, correction=0), torch.ones(detector.channels), rtol=0, atol=0.01)


def test_maps_that_hardly_move_do_not_rule_the_score():
    same = torch.full((1, 4, 4), 2.0)
    found = combined(same + 0.1, same, torch.full((2, 2), 2.0))
    assert found.max() == pytest.approx(0.1 * 0.1 / 0.002 / 2, rel=1e-3)


def test_other_colours():
    """One change of three, as torchvision's."""
    from torchvision.transforms.v2 import functional as T

    pixels = torch.rand(3, 9, 9)
    mean, std = (torch.tensor(own).view(3, 1, 1) for own in (backbones.IMAGENET.mean, backbones.IMAGENET.std))
    kinds = set()
    for seed in range(12):
        rng = np.random.default_rng(seed)
        kind, factor = int(rng.integers(3)), rng.uniform(0.8, 1.2)
        found = recoloured((pixels - mean) / std, np.random.default_rng(seed)) * std + mean
        change = (T.adjust_brightness, T.adjust_contrast, T.adjust_saturation)[kind]
        torch.testing.assert_close(found, change(pixels, factor), rtol=0, atol=1e-3)
        kinds.add(kind)
    assert kinds == {0, 1, 2}


def test_penalty_images(tmp_path):
    """A folder's are seen in the middle, at times without colours; photographs by random squares."""
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[10:30, 10:30] = 255, 0, 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    drawn = [ForeignImages(str(tmp_path)).draw((16, 16), np.random.default_rng(seed)) for seed in range(40)]
    grey = [bool((own[..., 0] == own[..., 1]).all()) for own in drawn]
    assert 4 < sum(grey) < 20
    assert all(own[2:-2, 2:-2, 0].min() > (70 if is_grey else 250) for own, is_grey in zip(drawn, grey, strict=True))
    photographs = [ForeignImages().draw((16, 8), np.random.default_rng(seed)) for seed in range(3)]
    assert {own.shape for own in photographs} == {(16, 8, 3)}
    assert not np.array_equal(*photographs[:2])
    for folder, why in (("gone", "no such folder"), (str(tmp_path / "empty"), "no image in this folder")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(UsageError, match=f"--penalty_images {folder}: {why}"):
            ForeignImages(folder)


def test_the_penalty_is_a_term_of_the_loss(tmp_path):
    """Another folder is another one, and without images there is none."""
    Image.new("RGB", (40, 40), (255, 0, 255)).save(tmp_path / "a.png")
    losses = {}
    for name in (None, str(tmp_path), "off"):
        detector, batch = (
            made(penalty_images=name),
            torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
        )
        (losses[name], _) = detector.training_on(Normal([detector.embed(batch)]))
    assert "penalty" not in losses["off"].details
    assert losses[None].loss != losses[str(tmp_path)].loss
    for own in losses.values():
        assert own.loss == pytest.approx(sum(own.details.values()), rel=1e-5)


def test_the_rate_falls_for_the_last_twentieth():
    detector = made()
    batch = detector.embed(torch.randn(1, 3, 32, 32))
    trainer = _Trainer(detector, None, 20)
    rates = [trainer.optimizer.param_groups[0]["lr"] for _ in trainer.steps([batch] * 20)]
    assert rates == pytest.approx([1e-4] * 19 + [1e-5])


@pytest.mark.parametrize("size", ["s", "m"])
@pytest.mark.parametrize("style", ["places", "numbers", "safetensors"])
def test_teachers_are_read_as_published(tmp_path, size, style):
    """By places in a sequence, or as numbered convolutions; in any order."""
    own = PDN(size, TINY, 4, True)
    state = own.state_dict()
    names = {name: name for name in state}
    if style == "numbers":
        names = {name: f"conv{i // 2 + 1}.{name.partition('.')[2]}" for i, name in enumerate(state)}
    renamed = {names[name]: tensor.contiguous() for name, tensor in reversed(state.items())}
    path = tmp_path / ("t.safetensors" if style == "safetensors" else "t.pth")
    save_file(renamed, path) if style == "safetensors" else torch.save(renamed, path)
    detector = made(size=size, teacher=str(path))
    detector.check()
    with torch.no_grad():
        detector.begin(Normal([torch.randn(2, 3, 32, 32)]))
    assert all(torch.equal(found, state[name]) for name, found in detector.teacher.state_dict().items())


def test_teachers_that_cannot_be_used_are_said_before_anything_is_read(tmp_path, mvtec, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(PDN("m", TINY, 4, True).state_dict(), "m.pth")
    torch.save({"0.weight": torch.zeros(1)}, "other.pth")
    Path("junk.pth").write_bytes(b"junk")
    words = [word for word in small("efficientad") if word not in ("--teacher", "random")]
    for given, kind, message in (
        ([], UsageError, "efficientad needs a teacher: give --teacher FILE, .* main.py distill -b"),
        (["--teacher", "gone.pth"], UsageError, "--teacher gone.pth: no such file"),
        (
            ["--teacher", "m.pth"],
            UsageError,
            "m.pth: of --size m, with 3, 5, 5, 5, 4 and 4 channels, and --size s .* 8, 16,",
        ),
        (
            ["--teacher", "other.pth"],
            DataError,
            "other.pth: no patch description network: expected the tensors 0.weight",
        ),
        (["--teacher", "junk.pth"], DataError, "teacher 'junk.pth' cannot be read as a state dict"),
    ):
        with pytest.raises(kind, match=message):
            main.main([*words, *given, "dataset", *SMALL_DATA, "mvtec", str(mvtec)], standalone_mode=False)
    assert not Path("results").exists()


def test_a_run_goes_on_with_the_teacher_that_it_began_with_alone(tmp_path, mvtec, monkeypatch):
    """Whatever its file is called."""
    monkeypatch.chdir(tmp_path)
    words = [word for word in small("efficientad") if word not in ("--teacher", "random")]

    def run(teacher):
        main.main(
            [*words, "--teacher", teacher, "dataset", *SMALL_DATA, "-d", "nut", "mvtec", str(mvtec)],
            standalone_mode=False,
        )

    network = PDN("s", 0.0625, 24, True)
    torch.save(network.state_dict(), "a.pth")
    run("a.pth")
    Path("a.pth").rename("b.pth")
    run("b.pth")
    network[0].bias.data += 1
    torch.save(network.state_dict(), "b.pth")
    with pytest.raises(UsageError, match=r"a run with other options \(net\.files_sha256\.teacher "):
        run("b.pth")


def test_what_the_penalty_is_of_is_said(caught_tasks, mvtec, tmp_path, capsys):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    for words, said in (
        ([], "The penalty is on random squares of photographs of scikit-image (camera, "),
        (["--penalty_images", "off"], "The penalty on images that are of no class is off"),
        (["--penalty_images", tmp_path], f"The penalty is on the images in '{tmp_path}'"),
    ):
        caught_tasks([*small("efficientad"), *words, "dataset", *SMALL_DATA, "mvtec", mvtec])
        errors = capsys.readouterr().err
        assert errors.count(said) == 1
        assert "--teacher random knows nothing" in errors


def test_images_too_small_for_a_patch_are_refused():
    with pytest.raises(
        UsageError, match=r"images of 32 x 32 are too small .* raise --imagesize to 33 or more, or give --pad"
    ):
        made(32, padding=False)
    assert made(33, padding=False).quantiles.shape == (2, 2)
    assert grid_of((256, 256), False) == (56, 56) and grid_of((256, 256), True) == (64, 64)


def test_training_is_that_of_anomalib(monkeypatch):
    """Where it is installed, from equal weights and images; dropout and random colours apart.

    In float64, which nothing here may leave: Adam moves a weight whose gradient is nearly nothing by that gradient's
    sign, and in float32 rounding decides it.
    """
    pytest.importorskip("anomalib")
    from anomalib.models.image.efficient_ad.torch_model import EfficientAdModel

    monkeypatch.setattr("methods.efficientad.OUTPUTS", 8)
    detector = made(128, width=1.0)
    theirs = EfficientAdModel(teacher_out_channels=8).double()
    theirs.ae.encoder.enconv6 = torch.nn.Conv2d(64, 64, 4).double()  # of 128 pixels
    pixels, other_colours, foreign = torch.randint(0, 256, (3, 10, 1, 3, 128, 128), dtype=torch.uint8)
    batches = [detector.embed_read(own) for own in pixels]
    detector.double()
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr("methods.efficientad.images_of", lambda kept, _: normalised(kept))
    ours = detector.teacher, detector.student, detector.autoencoder
    for own, other in zip(ours, (theirs.teacher, theirs.student, theirs.ae), strict=True):
        for one, another in zip(own.parameters(), other.parameters(), strict=True):
            another.data.copy_(one.data)
        for module in (*own.modules(), *other.modules()):
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    with torch.no_grad():
        detector.begin(Normal(batches))
    theirs.mean_std["mean"].data.copy_(detector.mean.view(1, -1, 1, 1))
    theirs.mean_std["std"].data.copy_(detector.deviation.view(1, -1, 1, 1))
    trainer = _Trainer(detector, None, 1000)
    changed, punished = iter(other_colours), iter(foreign)
    monkeypatch.setattr("methods.efficientad.recoloured", lambda image, rng: normalised(next(changed))[0])
    monkeypatch.setattr(trainer, "_foreign", lambda count, rng: normalised(next(punished)))
    found = [tuple(one.item() for one in stats) for stats in trainer.steps(batches)]
    learned = [*theirs.student.parameters(), *theirs.ae.parameters()]
    optimizer = torch.optim.Adam(learned, lr=1e-4, weight_decay=1e-5)
    theirs.train()
    for own, other, none, (_, hard, penalty, autoencoder, agreement) in zip(
        pixels, other_colours, foreign, found, strict=True
    ):
        monkeypatch.setattr(theirs, "choose_random_aug_image", lambda image, other=other: other.double() / 255)
        expected = theirs(own.double() / 255, none.double() / 255)
        assert (hard + penalty, autoencoder, agreement) == pytest.approx([one.item() for one in expected], rel=1e-9)
        optimizer.zero_grad()
        sum(expected).backward()
        optimizer.step()
    for own, other in ((detector.student, theirs.student), (detector.autoencoder, theirs.ae)):
        for one, another in zip(own.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(one, another, rtol=1e-9, atol=1e-9)
