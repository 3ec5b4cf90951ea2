"""Coresets against their definition and the arrays of other programs; an even draw of a stream."""

from pathlib import Path

import numpy as np
import pytest
import torch

from detection import coreset

GOLDEN = Path(__file__).parent / "golden" / "patchcore.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files if name != "meta"}


@pytest.mark.parametrize("window", [3, 4096])
@pytest.mark.parametrize("kind", ["greedy", "approx", "anomalib", "approx_unprojected", "greedy_unprojected"])
def test_picks_are_those_of_other_programs(golden, monkeypatch, kind, window):
    """In a window that holds them all, and in one that has to be filled again and again."""
    monkeypatch.setattr(coreset, "WINDOW", window)
    features, name = golden["coreset_projected"], kind.removesuffix("_unprojected")
    expected = golden[f"{name}_picks{kind.removeprefix(name)}"]
    if kind == "anomalib":
        features = golden["coreset_features"] @ golden["anomalib_projection"].T
        start = torch.full((len(features),), 1e30).index_fill_(0, expected[:1], torch.inf)
    elif kind.endswith("unprojected"):
        features = golden["coreset_features"]
    if kind.startswith("greedy"):
        start = coreset.distances_from_all(features)
    elif kind.startswith("approx"):
        start = coreset.distances_from_some(features, golden["approx_start_points"])
    found = coreset.coreset(features, len(expected), start)
    assert found.rows.tolist() == expected.tolist()
    closest = torch.cdist(features, features[expected]).amin(dim=1)
    assert found.radius == pytest.approx(closest.max().item(), rel=1e-5)


def test_a_coreset_takes_the_farthest_again_and_again():
    """Against the definition; a few rows far from all others are among the first."""
    features = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    features[150:153] += 30
    start = torch.full((200,), 1e30).index_fill_(0, torch.tensor(7), torch.inf)
    found = coreset.coreset(features, 12, start).rows.tolist()
    picks = [7]
    for _ in range(11):
        distances = torch.cdist(features, features[picks]).amin(1)
        picks.append(int(distances.argmax()))
    assert found == picks
    assert set(found[:3]) & {150, 151, 152}


def test_a_coreset_of_too_few_rows_holds_all_of_them():
    features = torch.tensor([[1.0], [1.0], [4.0], [2.0]])
    found = coreset.coreset(features, 7).rows.tolist()
    assert sorted(found[:4]) == [0, 1, 2, 3]
    assert found[4:] == [0, 0, 0]


def test_random_rows_are_any_rows_alike():
    """Of batches of different sizes: as many as asked for, none twice, early and late ones alike; read once."""
    rows = torch.arange(1000.0).unsqueeze(1)
    batches = iter(rows[:998].view(-1, 2, 1).split([1, 300, 198]))
    found = coreset.random_rows(batches, 100, seed=3)[:, 0]
    assert len(found.unique()) == 100
    drawn = torch.cat([coreset.random_rows(rows.split(70), 100, seed)[:, 0] for seed in range(40)])
    assert torch.histc(drawn, 4, 0, 1000).tolist() == pytest.approx([1000] * 4, rel=0.12)
    assert not torch.equal(found, found.sort().values)
    assert torch.equal(found, coreset.random_rows(rows[:998].view(-1, 2, 1).split([1, 300, 198]), 100, 3)[:, 0])
    assert torch.equal(coreset.random_rows(rows.split(70), 5000, 0)[:, 0].sort().values, rows[:, 0])
