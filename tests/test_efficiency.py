"""Costs of planted editors are measured as planted: time, one-off costs, memory, bytes, slower answers."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

import pytest
import torch
from planted import RankOne, Refuses, simple_cases

import tracer
from editing.edit import Edit
from editing.errors import EditFailedError, EvaluationError
from editing.evaluation.efficiency import latency_ratio, measure_efficiency
from editing.peak_memory import PeakMemory

REQUESTS = [case.request for case in simple_cases(5)]


class Sleeps(RankOne):
    """Sleeps 0.3 s before its first edit and 0.1 s in each."""

    def apply(self, model, requests, *, seed=0, progress=None) -> Edit:
        time.sleep(0.1 if self.calls else 0.4)
        return super().apply(model, requests)


def slow() -> Sleeps:
    time.sleep(0.2)
    return Sleeps()


def test_one_off_time_is_not_in_the_time_of_an_edit(toy_model: tracer.LanguageModel) -> None:
    toy_model.fingerprint()
    editor, found = measure_efficiency(toy_model, slow, REQUESTS, edits=3)
    assert 0.1 <= found.edit_seconds < 0.3  # less than the first one and the making
    assert found.one_off_seconds > 0.4  # 0.2 s of making and 0.3 s of the first edit; either alone is less
    assert (found.edits, editor.calls) == (3, [1] * 4) and toy_model.edits == []


@dataclass
class Keeps(RankOne):
    """Remembers in which folder it would have looked for values."""

    values_folder: str | None = "values"
    looked: list[str | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def apply(self, model, requests, *, seed=0, progress=None) -> Edit:
        self.looked.append(self.values_folder)
        return super().apply(model, requests)


def test_what_an_edit_costs_is_measured_without_kept_values(toy_model: tracer.LanguageModel) -> None:
    editor, found = measure_efficiency(toy_model, Keeps, REQUESTS, edits=1)
    assert isinstance(editor, Keeps) and editor.values_folder == "values"
    assert editor.looked == [None, None] and found.edits == 1


def test_the_bytes_that_stay_are_those_of_the_saved_edit(toy_model: tracer.LanguageModel, tmp_path) -> None:
    _, found = measure_efficiency(toy_model, RankOne, REQUESTS[:2])
    with RankOne().apply(toy_model, [REQUESTS[1]]) as edit:
        edit.save(tmp_path / "edit.safetensors")
    assert found.persistent_bytes == (tmp_path / "edit.safetensors").stat().st_size


def test_peak_memory_of_a_block_is_seen_and_then_forgotten() -> None:
    device = torch.device("cpu")
    with PeakMemory(device) as large:
        torch.ones(2**24, dtype=torch.float64).sum()
    with PeakMemory(device) as small:
        torch.ones(2**10).sum()
    assert large.bytes == pytest.approx(2**27, rel=0.1) and large.absolute > large.bytes
    assert small.bytes < 2**24


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere the high-water mark stays")
def test_memory_that_the_allocator_kept_of_earlier_work_counts_again() -> None:
    def work() -> None:  # 64 MiB in pieces that are kept when freed
        _ = [torch.ones(2**16) for _ in range(2**8)]

    for _ in range(3):
        with PeakMemory(torch.device("cpu")) as peak:
            work()
        assert peak.bytes == pytest.approx(2**26, rel=0.2)


def test_answers_that_take_twice_as_long_have_a_ratio_of_two(toy_model: tracer.LanguageModel, monkeypatch) -> None:
    monkeypatch.setattr(
        "editing.evaluation.efficiency.complete",
        lambda model, prompts, *, new_tokens: time.sleep(0.04 if model.edits else 0.02),
    )
    edit = RankOne().each(toy_model, REQUESTS[:1])[0]
    assert latency_ratio(toy_model, edit, ["a"], repeats=3) == pytest.approx(2, rel=0.2)
    assert edit.model is None


def test_what_a_first_request_spends_in_vain_is_one_off(toy_model: tracer.LanguageModel) -> None:
    class Refuses(RankOne):
        def apply(self, model, requests, *, seed=0, progress=None) -> Edit:
            if requests[0] is REQUESTS[0]:
                time.sleep(0.4)
                raise EditFailedError("no")
            return super().apply(model, requests)

    assert measure_efficiency(toy_model, Refuses, REQUESTS, edits=2)[1].one_off_seconds > 0.4


def test_an_editor_that_can_write_nothing_costs_nothing_that_can_be_measured(toy_model) -> None:
    with pytest.raises(EvaluationError, match="0 of 5 requests could be written, 2 are needed: no subject"):
        measure_efficiency(toy_model, Refuses, REQUESTS)
