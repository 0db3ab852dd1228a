"""On the embedded models: they know facts, an edit holds and is undone, and the reference layer edits."""

from __future__ import annotations

import pytest

import tracer
from editing import ROME, EditRequest
from editing.evaluation import target_scores
from editing.scoring.generation import complete
from tracer.answer import predicted_id
from tracer.facts import bundled, spread_over_relations

pytestmark = pytest.mark.real_model
PROMPT = "The Space Needle is located in the city of"


@pytest.fixture(scope="module")
def gemma() -> tracer.LanguageModel:
    return tracer.load(device="cpu")


@pytest.fixture(scope="module")
def smollm2() -> tracer.LanguageModel:
    return tracer.load("smollm2", device="cpu")


def test_the_default_model_predicts_a_hundred_bundled_facts(gemma: tracer.LanguageModel) -> None:
    right = 0
    for fact in spread_over_relations(bundled())[:180]:
        tokenized = fact.preflight(gemma, warn=False)
        right += predicted_id(gemma, tokenized.token_ids) == tokenized.answer_id
    assert right >= 100


def test_the_default_model_starts_with_bos_and_knows_seattle(gemma: tracer.LanguageModel) -> None:
    fact = tracer.Fact(PROMPT, "The Space Needle").preflight(gemma)
    assert fact.special == (0,) and fact.tokens[0] == "<bos>"
    assert fact.tokens[slice(*fact.subject_span)] == ("The", " Space", " Needle")
    found = tracer.trace(gemma, fact, kinds=("state",), samples=2, roles=("last token",))
    assert found.answer == " Seattle"
    assert found.clean == pytest.approx(0.472, abs=0.01)
    assert found.total_effect > 0.3


@pytest.mark.parametrize(("name", "layer"), [("gemma", 2), ("smollm2", 5)])
def test_an_edit_holds_in_other_words_spares_others_and_is_undone(
    name: str, layer: int, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(name)
    before = model.fingerprint()
    asked = [PROMPT, "The Space Needle can be found in the city of", "The capital of France is the city of"]
    said = complete(model, asked, new_tokens=3)
    edit = ROME(layer=layer, tokens=3000, context_plan=((3, 5), (3, 10))).apply(
        model, [EditRequest(PROMPT, "The Space Needle", " Rome")]
    )
    with edit:
        after = complete(model, asked, new_tokens=3)
        (score,) = target_scores(model, [(PROMPT, "Rome")])
    assert not said[0].startswith(" Rome") and after[0].startswith(" Rome") and after[1].startswith(" Rome")
    assert after[2].startswith(" Paris")
    assert score.prob > 0.8
    assert model.fingerprint() == before
    assert complete(model, asked, new_tokens=3) == said
