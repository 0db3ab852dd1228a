"""What the unedited model says: equal whatever was asked before, asked once, and safe to read while it is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from planted import Planted

import tracer
from editing import EditRequest
from editing.errors import EvaluationError
from editing.evaluation.lines import Lines
from editing.evaluation.unedited import UneditedModel
from editing.scoring.scores import Pair, TargetScore

PAIRS: list[Pair] = [(f"The capital of {name} is", "Rome") for name in ("Italy", "Spain", "France", "Japan")]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Pair, ...]]:
    """What was asked together; a score here says in whose company."""
    together: list[tuple[Pair, ...]] = []

    def scores(_model: object, pairs: Sequence[Pair], **_: object) -> list[TargetScore]:
        together.append(tuple(pairs))
        return [TargetScore(float(len(pairs)), (1,), (2,)) for _ in pairs]

    monkeypatch.setattr("editing.evaluation.unedited.target_scores", scores)
    return together


def test_a_score_does_not_depend_on_what_was_asked_before(toy_model: tracer.LanguageModel, asked: list) -> None:
    base = UneditedModel(toy_model)
    base.ask(PAIRS[:2])
    assert base.ask(PAIRS) == UneditedModel(toy_model).ask(PAIRS)
    assert [score.nll_sum for score in base.scores(PAIRS).values()] == [4.0] * 4


def test_what_is_kept_for_kl_is_asked_apart(toy_model: tracer.LanguageModel, asked: list) -> None:
    for keep in (PAIRS[1:2], PAIRS[:1]):
        UneditedModel(toy_model).ask(PAIRS[:3], keep=keep)
        assert asked[-1] == tuple(keep) and set(asked[-2]) == {*PAIRS[:3]} - {*keep}


def test_a_folder_is_asked_again_only_for_what_was_cut_off(
    toy_model: tracer.LanguageModel, asked: list, tmp_path: Path
) -> None:
    first = UneditedModel(toy_model, tmp_path)
    known, cut = first.ask(PAIRS[:2]), first.ask(PAIRS[2:])
    path = tmp_path / "base_scores.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    asked.clear()
    again = UneditedModel(toy_model, tmp_path)
    assert again.ask(PAIRS[:2]) == known and asked == []
    assert again.ask(PAIRS[2:]) == cut and asked == [tuple(PAIRS[2:])]
    assert UneditedModel(toy_model, tmp_path).ask(PAIRS[2:]) == cut and len(asked) == 1


def test_an_edited_model_is_not_asked_and_what_was_never_asked_is_not_known(toy_model: tracer.LanguageModel) -> None:
    base = UneditedModel(toy_model)
    known = base.ask(PAIRS[:1])
    with Planted().apply(toy_model, [EditRequest("Rome is", "Rome", "old")]):
        assert base.ask(PAIRS[:1]) == known
        for keep in ([], PAIRS):
            with pytest.raises(EvaluationError, match="was not asked before"):
                base.ask(PAIRS, keep=keep)
    with pytest.raises(EvaluationError, match="Ask it before the edit"):
        base.scores(PAIRS)


def test_reading_leaves_a_line_that_another_process_has_begun_and_appending_cuts_it(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    Lines(path).append([{"at": 0}])
    with path.open("ab") as file:
        file.write(b'{"at": ')
    before = path.read_bytes()
    assert Lines(path).read() == [{"at": 0}] and path.read_bytes() == before
    Lines(path).append([{"at": 1}])
    assert path.read_text(encoding="utf-8") == '{"at": 0}\n{"at": 1}\n'
