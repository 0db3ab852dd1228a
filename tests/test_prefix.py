"""Reading a common beginning once gives the scores of reading it every time, wherever a family takes positions from."""

from __future__ import annotations

import pytest
from conftest import make_tokenizer
from families import FAMILIES

import tracer
from editing.scoring.prefix import LEAST, begin_alike, common_length
from editing.scoring.scores import target_scores

POSITIONS = ("GPT-2", "GPT-J", "OPT", "BLOOM", "Falcon, ALiBi", "Mistral", "Gemma 3")


@pytest.mark.parametrize("family", POSITIONS)
def test_scores_after_a_prefix_are_those_of_the_whole_text(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tracer.load(FAMILIES[family].build().double(), tokenizer=make_tokenizer(bos=True), check=False)
    monkeypatch.setattr("editing.scoring.prefix.LEAST", 6)
    pairs = [
        (f"A cat sat on the{end}", target) for end in (" France is", " Spain", " It") for target in ("of", "Paris a")
    ]
    seen: list[tuple[int, ...]] = []
    handle = model.anatomy.embedding.register_forward_hook(lambda _m, _a, output: seen.append(output.shape[:2]))
    together = target_scores(model, pairs)
    handle.remove()
    for score, expected in zip(together, target_scores(model, pairs, share=False), strict=True):
        assert score.nll_sum == pytest.approx(expected.nll_sum, abs=1e-6)  # some attend in float32
    assert seen[0][0] == 1 and seen[1][0] == 3 and seen[1][1] < seen[0][1]  # the beginning, then the three ends


def test_rows_are_put_together_by_how_they_begin() -> None:
    one, other = tuple(range(LEAST)), tuple(range(1, LEAST + 1))
    rows = [(*one, 1), (*one, 2, 3), (*other, 1), (5, 6), one]
    assert begin_alike(rows) == [rows[:2], rows[2:]]  # what begins like no other is read with the short rows
    assert common_length(rows[:2]) == LEAST and common_length(rows) == common_length(rows[:1]) == 0
