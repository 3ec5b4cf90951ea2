"""Neighbours among features, against all distances."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detection import neighbours


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9)),
    centres=st.integers(1, 300),
    k=st.integers(1, 7),
    block=st.sampled_from([1, 700, 2**24]),
    seed=st.integers(0, 99),
)
def test_nearest_are_the_nearest(shape, centres, k, block, seed):
    """Whatever the number of centres, and however few distances are held at once."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(*shape, 3, generator=generator)
    table, k = torch.randn(centres, 3, generator=generator), min(k, centres)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "BLOCK", block)
        found = neighbours.nearest(features, table, k)
    squares = torch.cdist(features, table.expand(shape[0], -1, -1), compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(squares.gather(2, found), squares.sort(-1).values[..., :k], rtol=1e-4, atol=1e-4)


def test_distances_are_held_within_the_block(monkeypatch):
    """Their number is bounded however many patches and centres there are."""
    largest = 0
    matmul = torch.Tensor.__matmul__

    def watched(a, b):
        nonlocal largest
        result = matmul(a, b)
        largest = max(largest, result.numel())
        return result

    monkeypatch.setattr(neighbours, "BLOCK", 10_000)
    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    neighbours.nearest(torch.randn(2, 500, 3), torch.randn(1000, 3), 3)
    assert 0 < largest <= 10_000


def test_a_coreset_takes_the_farthest_again_and_again():
    """Against the definition; a few rows far from all others are among the first."""
    features = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
    features[150:153] += 30
    found = neighbours.coreset(features, 12, first=7).tolist()
    picks = [7]
    for _ in range(11):
        distances = torch.cdist(features, features[picks]).amin(1)
        picks.append(int(distances.argmax()))
    assert found == picks
    assert set(found[:3]) & {150, 151, 152}


def test_a_coreset_of_too_few_rows_holds_all_of_them():
    features = torch.tensor([[1.0], [1.0], [4.0], [2.0]])
    found = neighbours.coreset(features, 7).tolist()
    assert sorted(found[:4]) == [0, 1, 2, 3]
    assert found[4:] == [0, 0, 0]


def test_random_rows_are_any_rows_alike():
    """Of batches of different sizes: as many as asked for, none twice, early and late ones alike; read once."""
    rows = torch.arange(1000.0).unsqueeze(1)
    batches = iter(rows[:998].view(-1, 2, 1).split([1, 300, 198]))
    found = neighbours.random_rows(batches, 100, seed=3)[:, 0]
    assert len(found.unique()) == 100
    drawn = torch.cat([neighbours.random_rows(rows.split(70), 100, seed)[:, 0] for seed in range(40)])
    assert torch.histc(drawn, 4, 0, 1000).tolist() == pytest.approx([1000] * 4, rel=0.12)
    assert not torch.equal(found, found.sort().values)
    assert torch.equal(found, neighbours.random_rows(rows[:998].view(-1, 2, 1).split([1, 300, 198]), 100, 3)[:, 0])
    assert torch.equal(neighbours.random_rows(rows.split(70), 5000, 0)[:, 0].sort().values, rows[:, 0])
