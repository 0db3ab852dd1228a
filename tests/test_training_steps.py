"""What a step of a training does to the network and to its objective, and which network is kept."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from test_ke import QUICK as QUICK_KE
from test_mend import QUICK, small_model, small_records

from editing import KE, MEND, TrainingPlan
from editing.meta_learning.learned import Learned
from editing.meta_learning.lessons import lesson_of, losses
from editing.meta_learning.objective import Constrained
from editing.meta_learning.trained import Trained

PLAN = TrainingPlan(steps=1, batch=4, together=4, every=1, held_out=6)


def trained(editor: Learned, plan: TrainingPlan = PLAN) -> Trained:
    found = editor.fit(small_model(), small_records(20), plan=plan).trained
    assert found is not None
    return found


def steps_of(found: Trained) -> list[Any]:
    assert found.result is not None
    return [record for record in found.result.curve if "validation" not in record]


def moved(editor: MEND, plan: TrainingPlan = PLAN) -> tuple[float, float]:
    """The farthest that the first step moves an a_W, and an entry of U."""
    network = trained(editor, plan).network
    steps = (network.get_parameter("steps") - editor.step).abs().max()
    widen = [value.abs().max() for name, value in network.named_parameters() if name.endswith("widen")]
    return steps.item(), max(widen).item()


class Halved(MEND):
    """A training at half its rates."""

    def rate_factor(self, step: int, steps: int) -> float:
        return 0.5


def test_the_first_step_moves_each_parameter_by_its_own_rate() -> None:
    """Adam's first step is the rate itself, whatever the gradient."""
    rates = QUICK | {"rate": 2e-3, "step_rate": 5e-3}
    assert moved(MEND(**rates)) == pytest.approx((5e-3, 2e-3), rel=1e-3)
    assert moved(Halved(**rates)) == pytest.approx((2.5e-3, 1e-3), rel=1e-3)


def test_a_gradient_is_cut_to_its_largest_norm() -> None:
    """So short a gradient is nothing beside the number that Adam adds to its size."""
    assert max(moved(MEND(**QUICK), dataclasses.replace(PLAN, clip=1e-20))) < 1e-10


def test_the_price_rises_by_the_drift_above_its_margin_and_the_margin_tightens_after_each_validation() -> None:
    class Eager(KE):
        def objective(self) -> Constrained:
            return Constrained(margin=0.3, least_margin=0.2, ascent=0.5, accurate=-1.0)  # every accuracy is enough

    records = steps_of(trained(Eager(**QUICK_KE), dataclasses.replace(PLAN, steps=4)))
    assert [record["margin"] for record in records] == pytest.approx([0.3, 0.24, 0.2, 0.2])
    price = 1.0
    for record in records:
        price = max(0.0, price + 0.5 * (record["drift"] - record["margin"]))
        assert record["price"] == pytest.approx(price, abs=1e-12)
    assert price != 1


def test_the_network_of_least_weighted_loss_is_kept() -> None:
    """The rate is so large that the last network is not the best one."""
    model, records = small_model(), small_records(20)
    editor, plan = (
        MEND(**QUICK | {"rate": 0.03, "step_rate": 0.01}, edit_weight=0.5, drift_weight=2.0),
        dataclasses.replace(PLAN, steps=3),
    )
    found = editor.fit(model, records[6:], held_out=records[:6], plan=plan).trained
    assert found is not None and found.result is not None
    checks = [record for record in found.result.curve if "validation" in record]
    for record in checks:
        assert record["loss"] == pytest.approx(0.5 * record["edit_loss"] + 2 * record["drift"], rel=1e-12)
    assert found.result.best == min(checks, key=lambda record: record["loss"]) and found.result.best["step"] < 3
    with torch.no_grad():
        lesson = lesson_of(model, found.network, records[:6], [record.rephrases[0] for record in records[:6]])
        again = losses(found.network, lesson)
    assert again.edit.mean().item() == pytest.approx(found.result.best["edit_loss"], rel=1e-9)
    assert again.drift.mean().item() == pytest.approx(found.result.best["drift"], rel=1e-9)


@pytest.mark.parametrize("editor", [MEND(**QUICK), KE(**QUICK_KE)])
def test_training_in_inference_mode_is_training(editor: Learned) -> None:
    """Whatever mode the caller is in, the first step is the same."""
    model, records = small_model(), small_records(20)
    with torch.inference_mode():
        found = editor.fit(model, records, plan=PLAN).trained
    assert found is not None
    torch.testing.assert_close(found.network.state_dict(), trained(editor).network.state_dict())
