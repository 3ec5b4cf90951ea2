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
    addmm = torch.addmm

    def watched(*parts):
        nonlocal largest
        result = addmm(*parts)
        largest = max(largest, result.numel())
        return result

    monkeypatch.setattr(neighbours, "BLOCK", 10_000)
    monkeypatch.setattr(torch, "addmm", watched)
    neighbours.nearest(torch.randn(2, 500, 3), torch.randn(1000, 3), 3)
    assert 0 < largest <= 10_000


@settings(max_examples=60, deadline=None)
@given(
    centres=st.integers(1, 60),
    count=st.integers(1, 60),
    block=st.sampled_from([1, 100, 2**24]),
    seed=st.integers(0, 99),
)
def test_the_closest_of_all_and_of_the_first_are_found_together(centres, count, block, seed):
    generator = torch.Generator().manual_seed(seed)
    features, table = (torch.randn(n, 3, generator=generator) for n in (7, centres))
    count = min(count, centres)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "BLOCK", block)
        found = neighbours.closest_of_first(features, neighbours.search_table(table), [count, centres])
    for n, own in zip((count, centres), found, strict=True):
        squares = torch.cdist(features, table[:n], compute_mode="donot_use_mm_for_euclid_dist")
        torch.testing.assert_close(squares.gather(1, own.unsqueeze(1))[:, 0], squares.amin(1), rtol=1e-4, atol=1e-4)
