"""Rows and packed tokens cover every cell once, and a packed token sees what it would see unpacked."""

from __future__ import annotations

import pytest
import torch

from tracer.site import window_layers
from tracer.sweep.packing import Packing, bundles, state_rows, window_rows


@pytest.mark.parametrize(("n_layers", "window"), [(4, 1), (4, 2), (4, 10), (12, 3), (30, 10)])
def test_window_rows_answer_for_every_layer_once(n_layers: int, window: int) -> None:
    rows = window_rows(window, n_layers)
    assert sorted(layer for row in rows for layer in row.columns) == list(range(n_layers))
    assert [row.start for row in rows] == sorted(row.start for row in rows)
    for row in rows:
        own = window_layers(row.columns[0], window, n_layers)
        if row.parent is None:
            assert row.held == own and row.start == own.start + 1
        else:  # clipped at layer 0: it leaves the longest window where its own ends
            assert own.start == 0 and row.start == own.stop and rows.index(row.parent) < rows.index(row)


def test_windows_are_the_published_ones() -> None:
    assert list(window_layers(7, 10, 30)) == list(range(2, 12))
    assert list(window_layers(1, 10, 30)) == list(range(0, 6))
    assert list(window_layers(29, 10, 30)) == list(range(24, 30))
    assert list(window_layers(3, 1, 30)) == [3]
    assert list(window_layers(3, 3, 30)) == [2, 3, 4]


def test_there_is_a_row_for_each_state_but_the_last() -> None:
    assert [row.columns for row in state_rows(4)] == [(0,), (1,), (2,)]


@pytest.mark.parametrize("clean_token", [None, 2])
def test_a_packed_token_sees_the_tokens_before_it(clean_token: int | None) -> None:
    n_tokens, window = 6, 3
    visible = torch.ones(n_tokens, n_tokens).bool().tril() & ~torch.ones(n_tokens, n_tokens).bool().tril(-window)
    packing = Packing.of([2, 3, 5], n_tokens, clean_token)
    mask = packing.mask(visible)
    columns = [*range(n_tokens - 1), *([clean_token] if clean_token is not None else []), *packing.computed.tolist()]
    for pair, (i, j) in enumerate(zip(packing.restored.tolist(), packing.computed.tolist(), strict=True)):
        seen = sorted(columns[column] for column in torch.nonzero(mask[pair])[:, 0].tolist())
        assert seen == [t for t in range(n_tokens) if visible[j, t]], (i, j)


def test_bundles_keep_every_group_and_the_limit() -> None:
    cut = bundles(list(range(2, 12)), 12, 15)
    assert [group for bundle in cut for group in bundle] == list(range(2, 12))
    assert all(len(bundle) == 1 or sum(12 - group for group in bundle) <= 15 for bundle in cut)
