"""What is left of an image without its pattern, against the arrays of SciPy and on images whose pattern is known."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

import backbones
from detection.anomaly_map import anomaly_maps
from errors import UsageError
from methods import frequency
from methods.frequency import Frequency

FILE = np.load(Path(__file__).parent / "golden" / "frequency.npz")
GOLDEN = {name: torch.from_numpy(FILE[name]).unsqueeze(0) for name in FILE.files if name != "meta"}
F = torch.fft.fft2(GOLDEN["image"])
SIZE = tuple(GOLDEN["image"].shape[1:])
ROW, COLUMN, SIDE = 21, 24, 3  # of the spot


def seeded():
    return torch.Generator().manual_seed(0)


def built(size=SIZE, **options):
    return Frequency(backbones.load("pixels"), ["input"], size, **options)


def smoothed(values, sigma=3.0):
    return anomaly_maps(values, SIZE, sigma)


def close(found, name, atol=1e-5):
    """To so much of the largest value."""
    expected = GOLDEN[name]
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=atol * expected.abs().max().item())


def test_phase_only():
    left = frequency.phase_only(F)
    close(left, "phase_only", 1e-9)
    assert left.square().sum().item() == pytest.approx(1)
    close(smoothed(left.square()), "energy_map")
    close(smoothed(frequency.energy(left)) / F[0].numel(), "energy_map")
    close(frequency.squared_deviation(smoothed(left)), "z2_map")
    close(frequency.phase_only(torch.fft.fft2(GOLDEN["clean"])), "clean_phase_only", 1e-9)


def test_notch():
    peaks = frequency.peaks(F.abs().log1p(), 4.0)
    assert torch.equal(peaks, GOLDEN["peaks"])
    left = frequency.inverse(F * ~peaks)
    close(left, "residual", 1e-9)
    close(smoothed(left.abs()), "residual_map")


def test_spectral_residual():
    left = frequency.spectral_residual(F).square()
    close(left, "spectral_residual", 1e-9)
    close(smoothed(left, 2.5), "saliency_map")


def test_the_rest_of_the_periodic_component_is_smooth():
    """Its Laplacian on the torus is made of the steps between borders alone (Moisan 2011)."""
    image = torch.rand(1, 9, 12, dtype=torch.float64, generator=seeded())
    smooth = (image - image.mean() - frequency.inverse(frequency.spectrum(image)))[0].numpy()
    laplacian = ndimage.laplace(smooth, mode="wrap")
    inside = ndimage.laplace(image[0].numpy(), mode="nearest")  # which sees no steps
    np.testing.assert_allclose(laplacian, ndimage.laplace(image[0].numpy(), mode="wrap") - inside, atol=1e-9)
    assert abs(smooth.mean()) < 1e-12


def pattern(side=96, spot=(40, 50)):
    """A periodic image of 8 bits, and the same with a spot of 4 x 4 pixels."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    clean = 0.5 + 0.2 * torch.sin(2 * torch.pi * (x + y) / 8) + 0.1 * torch.cos(2 * torch.pi * x / 6)
    clean = (clean * 255).round() / 255
    spoiled = clean.clone()
    spoiled[spot[0] : spot[0] + 4, spot[1] : spot[1] + 4] += 0.3
    return clean.unsqueeze(0), spoiled.unsqueeze(0)


@pytest.mark.parametrize("mode", ["phase", "phot", "notch", "reference", "whiten"])
def test_a_spot_on_a_pattern(mode):
    """Its map is 10 times the background, and more than any of the pattern's; without training images where none are
    needed."""
    detector = built((96, 96), mode=mode)
    clean, spoiled = pattern()
    if mode in frequency.LEARNED:
        shifted = torch.cat([clean.roll(i, 2) for i in range(8)])
        detector.fit_embeddings((shifted + 0.02 * torch.randn(shifted.shape, generator=seeded())).split(3))
    assert detector.passes == int(mode in frequency.LEARNED)
    scores, maps = detector.score(torch.cat([spoiled, clean]))
    place = divmod(int(maps[0].argmax()), 96)
    assert abs(place[0] - 41.5) < 3 and abs(place[1] - 51.5) < 3
    assert maps[..., : detector.border].max() == 0 < maps[..., detector.border].max()
    seen = maps[0, detector.border : -detector.border, detector.border : -detector.border]
    assert scores[0] > 10 * seen.median()
    assert scores[0] > 1.5 * scores[1] or mode in ("phase", "phot")  # which are of each image's own scale


def test_the_spectral_residual_sees_small_images():
    """Of 200 pixels as of 64: the spot is where it was."""
    _, spoiled = pattern(200, (100, 130))
    detector = built((200, 200), mode="residual", sigma=1.0)
    maps = detector.score(torch.ones(1, 200, 200) * 0.4 + (spoiled - 0.5) * (spoiled > 0.85)).maps
    row, column = divmod(int(maps[0].argmax()), 200)
    assert abs(row - 102) < 8 and abs(column - 132) < 8


@pytest.mark.parametrize("mode", ["phase", "phot", "notch", "residual", "reference", "whiten"])
def test_nothing_is_left_of_constant_images(mode):
    images = torch.tensor([0.0, 0.3, 1.0]).view(3, 1, 1).expand(3, 40, 40)
    detector = built((40, 40), mode=mode)
    detector.fit_embeddings([images])
    scores, maps = detector.score(images)
    assert maps.abs().max() < 1e-6 and scores.unique().numel() == 1


def test_options_change_what_is_left():
    noisy = pattern()[1] + 0.05 * torch.randn(1, 96, 96, generator=seeded())
    plain, damped = (built((96, 96), damp=damp).score(noisy).maps for damp in (0.0, 1.0))
    contrast = [maps[0, 42, 52] / maps[0].median() for maps in (plain, damped)]
    assert contrast[1] > 1.1 * contrast[0]
    few, many = (frequency.peaks(F.abs().log1p(), k).sum() for k in (2.0, 6.0))
    assert few > many > 0


def test_borders_that_leave_nothing_are_refused():
    with pytest.raises(UsageError, match=r"--sigma 12 leaves nothing of images of 48 pixels, whose outer 24"):
        built((48, 48), sigma=12.0)
    assert built((48, 48), sigma=11.5).border == 23
