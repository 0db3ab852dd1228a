"""The editors' linear algebra against what defines it: constraints, normal equations, limits, slow formulas."""

from __future__ import annotations

import pytest
import torch

from editing.errors import EditFailedError
from editing.locate_then_edit.covariance import SecondMoment
from editing.locate_then_edit.solve import exact_update, null_space_update, ridge_update

NEURONS, WIDTH = 12, 5


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moment_of(rank: int = NEURONS) -> SecondMoment:
    keys = normal(400, NEURONS, seed=1)
    keys[:, rank:] *= 1e-6
    return SecondMoment(0, keys.T @ keys / 400, 400, "planted", 0.0, ridge=0.0)


def change(factors: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    out, into = factors
    return out @ into.T


def close(one: torch.Tensor, other: torch.Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(one, other, atol=atol, rtol=0)


@pytest.mark.parametrize("n", [1, 4, NEURONS, 30])
def test_memit_solves_its_normal_equations(n: int) -> None:
    moment, keys, residuals = moment_of(), normal(NEURONS, n, seed=2), normal(WIDTH, n, seed=3)
    found = change(ridge_update(moment, keys, residuals, 7.0))
    close(found @ (7.0 * moment.matrix + keys @ keys.T), residuals @ keys.T)


def test_memit_with_a_weak_ridge_answers_every_key_and_is_emmet_without_slack() -> None:
    moment, keys, residuals = moment_of(), normal(NEURONS, 4, seed=2), normal(WIDTH, 4, seed=3)
    weak = change(ridge_update(moment, keys, residuals, 1e-9))
    close(weak @ keys, residuals, atol=1e-6)
    inverse = torch.linalg.inv(moment.matrix)
    least = residuals @ torch.linalg.inv(keys.T @ inverse @ keys) @ keys.T @ inverse
    close(weak, least, atol=1e-6)
    close(change(exact_update(moment, keys, residuals, 0.0)), least)


def test_memit_with_more_keys_than_neurons_is_least_squares() -> None:
    keys, residuals = normal(NEURONS, 40, seed=2), normal(WIDTH, 40, seed=3)
    close(change(ridge_update(moment_of(), keys, residuals, 1e-10)), residuals @ torch.linalg.pinv(keys), atol=1e-7)


def test_memit_with_a_strong_ridge_changes_nothing() -> None:
    keys, residuals = normal(NEURONS, 4, seed=2), normal(WIDTH, 4, seed=3)
    assert change(ridge_update(moment_of(), keys, residuals, 1e12)).abs().max() < 1e-9


def test_memit_writes_the_share_of_one_key_that_its_lambda_says() -> None:
    moment, key, residual = moment_of(), normal(NEURONS, 1, seed=2), normal(WIDTH, 1, seed=3)
    weight = float(key.T @ torch.linalg.inv(moment.matrix) @ key)
    close(change(ridge_update(moment, key, residual, 3.0)) @ key, residual * weight / (weight + 3.0))


@pytest.mark.parametrize("n", [1, 4, 30])
def test_the_order_of_requests_changes_nothing(n: int) -> None:
    moment, keys, residuals = moment_of(), normal(NEURONS, n, seed=2), normal(WIDTH, n, seed=3)
    order, kept = torch.randperm(n, generator=torch.Generator().manual_seed(0)), moment.spectrum[1][:, :8]
    none = torch.zeros(NEURONS, 0, dtype=torch.float64)
    for solve in (
        lambda k, r: ridge_update(moment, k, r, 7.0),
        lambda k, r: exact_update(moment, k, r, 1e-3),
        lambda k, r: null_space_update(kept, k, r, none, 2.0),
    ):
        close(change(solve(keys, residuals)), change(solve(keys[:, order], residuals[:, order])))


def test_emmet_answers_every_key_whatever_the_scale_of_the_statistics() -> None:
    moment, keys, residuals = moment_of(), normal(NEURONS, 6, seed=2), normal(WIDTH, 6, seed=3)
    found = change(exact_update(moment, keys, residuals, 0.0))
    close(found @ keys, residuals)
    scaled = SecondMoment(0, 1000 * moment.matrix, 400, "planted", 0.0, ridge=0.0)
    close(found, change(exact_update(scaled, keys, residuals, 0.0)))


def test_emmets_slack_is_relative_to_how_unusual_the_keys_are() -> None:
    """Of one key 1 / (1 + slack) of the residual is written, whatever the units of C."""
    key, residual = normal(NEURONS, 1, seed=2), normal(WIDTH, 1, seed=3)
    for scale in (1.0, 1000.0):
        moment = SecondMoment(0, scale * moment_of().matrix, 400, "planted", 0.0, ridge=0.0)
        close(change(exact_update(moment, key, residual, 0.25)) @ key, residual / 1.25)


def test_emmet_disturbs_old_keys_least_among_the_changes_that_answer_the_new_ones() -> None:
    moment, keys, residuals = moment_of(), normal(NEURONS, 3, seed=2), normal(WIDTH, 3, seed=3)
    found = change(exact_update(moment, keys, residuals, 0.0))
    free = torch.eye(NEURONS, dtype=torch.float64) - keys @ torch.linalg.pinv(keys)
    for seed in range(10):
        other = found + normal(WIDTH, NEURONS, seed=seed) @ free
        close(other @ keys, residuals)
        assert (other @ moment.matrix @ other.T).trace() > (found @ moment.matrix @ found.T).trace()


def test_emmet_answers_a_key_given_twice_with_the_mean_of_both() -> None:
    key, residuals = normal(NEURONS, 1, seed=2), normal(WIDTH, 2, seed=3)
    found = change(exact_update(moment_of(), torch.cat((key, key), 1), residuals, 0.0))
    close(found @ key, residuals.mean(1, keepdim=True), atol=1e-8)


@pytest.mark.parametrize(("n", "n_earlier"), [(1, 0), (3, 4), (3, 20), (20, 0), (20, 20)])
def test_alphaedit_is_its_published_formula(n: int, n_earlier: int) -> None:
    kept = moment_of().spectrum[1][:, :8]
    keys, residuals = normal(NEURONS, n, seed=2), normal(WIDTH, n, seed=3)
    earlier = normal(NEURONS, n_earlier, seed=4)
    projector = kept @ kept.T
    inner = keys @ keys.T @ projector + earlier @ earlier.T @ projector + 2.0 * torch.eye(NEURONS, dtype=torch.float64)
    published = residuals @ keys.T @ projector @ torch.linalg.inv(inner)
    close(change(null_space_update(kept, keys, residuals, earlier, 2.0)), published)


def test_alphaedit_leaves_what_old_keys_use_alone() -> None:
    kept, used = moment_of().spectrum[1].split([8, NEURONS - 8], dim=1)
    none = torch.zeros(NEURONS, 0, dtype=torch.float64)
    found = change(null_space_update(kept, normal(NEURONS, 3, seed=2), normal(WIDTH, 3, seed=3), none, 2.0))
    assert (found @ used).abs().max() < 1e-12 * found.norm()


def test_alphaedit_with_little_weight_on_size_answers_every_key() -> None:
    kept, keys = moment_of().spectrum[1][:, :8], normal(NEURONS, 3, seed=2)
    residuals, none = normal(WIDTH, 3, seed=3), torch.zeros(NEURONS, 0, dtype=torch.float64)
    close(change(null_space_update(kept, keys, residuals, none, 1e-9)) @ keys, residuals, atol=1e-7)


def test_alphaedit_holds_earlier_keys_the_more_the_less_size_weighs() -> None:
    kept, keys = moment_of().spectrum[1][:, :8], normal(NEURONS, 2, seed=2)
    residuals, earlier = normal(WIDTH, 2, seed=3), normal(NEURONS, 3, seed=4)
    found = change(null_space_update(kept, keys, residuals, 1e4 * earlier, 1.0))
    assert (found @ earlier).norm() < 1e-6 * (found @ keys).norm()


def test_keys_that_are_not_numbers_are_an_error() -> None:
    keys = torch.full((NEURONS, 2), float("nan"), dtype=torch.float64)
    with pytest.raises(EditFailedError, match="cannot be told apart"):
        ridge_update(moment_of(), keys, normal(WIDTH, 2, seed=3), 1.0)
