"""Editors on an encoder-decoder: what is asked for is said, other facts stay, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from encoder_decoders import LAYERS, LIES_IN, WAYS, WIDTH, taught
from remembering import same_states, states
from transformers import PreTrainedTokenizerFast

import tracer
from editing import GRACE, IKE, SERAC, CaliNet, Edit, EditRequest, MeLLo, MemPrompt, TPatcher, load_edit
from editing.added_parameters.calinet_keeping import kept_prompts
from editing.added_parameters.last_layer import last_layer
from editing.added_parameters.patch_texts import said
from editing.added_parameters.silent_rows import silent_rows
from editing.datasets.case import Case
from editing.editors import Editor, editor_named
from editing.evaluation.making import made_each, made_together
from editing.memory import ScopedFact, ScopedFacts
from editing.memory.scope import untrained_scope
from editing.scoring.asking import routes
from editing.scoring.generation import complete
from editing.scoring.scores import target_scores
from tracer.errors import AnatomyError
from tracer.facts import bundled, spread_over_relations
from tracer.model.inputs import sentence, target_encoding, without_gap

PARIS = EditRequest(WAYS[0].format("Paris"), "Paris", "Italy")
BONN = EditRequest(WAYS[1].format("Bonn"), "Bonn", "Japan")
OTHERS = [
    (way.format(city), country) for way in WAYS for city, country in LIES_IN.items() if city not in ("Paris", "Bonn")
]
LAST = 2 * LAYERS  # the decoder's last block, counted through
pytestmark = pytest.mark.filterwarnings("ignore::editing.EditingWarning")


@pytest.fixture(scope="module")
def reading(closing: PreTrainedTokenizerFast) -> tracer.LanguageModel:
    """One that knows where cities lie, and believes the sentence that it reads before a question."""
    own = [(way.format(city), country) for way in WAYS for city, country in LIES_IN.items()]
    told = [
        (before.format(sentence(WAYS[0].format(city), country).removesuffix("."), WAYS[0].format(city)), country)
        for city in LIES_IN
        for country in LIES_IN.values()
        for before in ("{}. {}", "New Fact: {}\nPrompt: {}")
    ]
    return taught(closing, own + told, steps=400)


def says(model: tracer.LanguageModel, pairs: Sequence[tuple[str, str]]) -> list[bool]:
    return [score.tf_exact for score in target_scores(model, pairs)]


def check_contract(
    model: tracer.LanguageModel,
    editor: Editor,
    requests: Sequence[EditRequest],
    path: Path,
    beside: Sequence[EditRequest] = (),
) -> Edit:
    """Reliable; others stay; texts equal teacher forcing; a file acts as the edit did; undo is exact."""
    before, wanted = states(model), [(request.prompt, request.new) for request in requests]
    old = target_scores(model, [*wanted, *OTHERS])
    assert not any(score.tf_exact for score in old[: len(wanted)]) and all(
        score.tf_exact for score in old[len(wanted) :]
    )
    with editor.apply(model, [*requests, *beside]) as edit:
        written = target_scores(model, [*wanted, *OTHERS])
        assert all(score.tf_exact for score in written)
        texts = complete(model, [prompt for prompt, _ in (*wanted, *OTHERS)], new_tokens=6)
        assert [text.strip() for text in texts] == [answer for _, answer in (*wanted, *OTHERS)]
        edit.save(path / "edit.safetensors")
    assert same_states(model, before) and target_scores(model, [*wanted, *OTHERS]) == old
    with load_edit(path / "edit.safetensors").apply(model):
        assert target_scores(model, [*wanted, *OTHERS]) == written
    assert same_states(model, before) and not model.edits and not model.readers
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.torch.modules())
    return edit


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("layers", [(LAST,), (0, LAST - 1)], ids=["last", "encoder and decoder"])
def test_calinet_keeps_the_contract(knowing, layers: tuple[int, ...], gated: bool, tmp_path: Path) -> None:
    """Facts that are to stay are trained on too: the published loss has nothing that holds others."""
    cities = ("Milan", "Kyoto") * 2
    stay = [EditRequest(prompt, city, country) for (prompt, country), city in zip(OTHERS, cities, strict=True)]
    editor = CaliNet(layers=layers, slots=16, gated=gated, rate=0.01, steps=200)
    size = check_contract(knowing, editor, [PARIS, BONN], tmp_path, beside=stay).summary["bytes_added"]
    assert size == 4 * (3 if gated else 2) * WIDTH * 16 * len(layers)


@pytest.mark.parametrize("layer", [0, LAST])
def test_what_calinet_keeps_is_the_models_own_next_word(knowing: tracer.LanguageModel, layer: int) -> None:
    kept = kept_prompts(knowing, layer, 3, without=[])
    assert abs(kept.divergence().item()) < 1e-9
    first: list[torch.Tensor] = []
    pairs = [(fact.prompt, "France") for fact in spread_over_relations(bundled())[:3]]
    for pair in pairs:
        target_scores(knowing, [pair], visit=lambda _pair, place, odds: None if place else first.append(odds))
    torch.testing.assert_close(kept.before, torch.stack(first), atol=1e-9, rtol=0)


@pytest.mark.parametrize("prompt", [PARIS.prompt, "Where is Paris?"], ids=["sentinel", "plain"])
def test_a_patchs_cached_logits_are_those_of_whole_passes(knowing: tracer.LanguageModel, prompt: str) -> None:
    """With an increment added at every token of the decoder."""
    request, rows = EditRequest(prompt, "Paris", "Italy and Japan"), []
    cached = last_layer(knowing, request)
    encoding = target_encoding(knowing, prompt, request.new)
    assert len(cached.seen) == len(cached.target) == len(encoding.target_ids)
    torch.testing.assert_close(cached.seen, cached.entering)
    more = torch.randn(WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    hook = knowing.anatomy.value_matrix(LAST).register_forward_hook(lambda _m, _i, output: output + more)
    target_scores(knowing, [(prompt, request.new)], visit=lambda _pair, _place, odds: rows.append(odds))
    hook.remove()
    found = cached.logits(more.expand_as(cached.given)).log_softmax(-1)
    torch.testing.assert_close(found, torch.stack(rows), atol=1e-9, rtol=0)


def test_t_patcher_keeps_the_contract(knowing: tracer.LanguageModel, tmp_path: Path) -> None:
    check_contract(knowing, TPatcher(memory=200, steps=600), [PARIS, BONN], tmp_path)


def test_a_decoders_memory_is_where_it_answers_and_not_about_the_edited_subject(knowing: tracer.LanguageModel) -> None:
    texts = said(knowing)
    assert {text.first for text in texts} == {0}, (
        "bundled prompts have no gap: the start token is where an answer begins"
    )
    memory = silent_rows(knowing, 40, seed=0)
    assert len(memory.trained) <= 40 and memory.trained.shape[1] == WIDTH
    subject = texts[0].subject
    fewer = silent_rows(knowing, 40, seed=0, without=[subject])
    assert len(fewer.trained) + len(fewer.validation) < len(memory.trained) + len(memory.validation)
    assert torch.equal(silent_rows(knowing, 40, seed=0).trained, memory.trained)


def test_a_filled_gap_makes_a_sentence_and_is_nothing_to_search_by() -> None:
    assert sentence(PARIS.prompt, " Italy") == "The country of Paris is Italy."
    assert sentence("Paris is in", "Italy") == "Paris is in Italy"
    assert without_gap(PARIS.prompt) == "The country of Paris is ." and without_gap("a  b") == "a  b"


def demonstrations() -> ScopedFacts:
    facts = [
        ScopedFact(WAYS[0].format(city), city, country, (WAYS[0].format(city),), ((WAYS[0].format("Rome"), "Italy"),))
        for city, country in (("Oslo", "Norway"), ("Lima", "Peru"))
    ]
    return ScopedFacts("two", tuple(facts))


def test_ike_shows_facts_to_the_encoder_and_the_query_keeps_its_gap(reading: tracer.LanguageModel) -> None:
    with IKE(count=2, demonstrations=demonstrations()).apply(reading, [PARIS]):
        (read,) = routes(reading, [WAYS[0].format("Bonn")])
        encoded = target_encoding(reading, read.prompt, "Italy")
    *shown, own, last = read.prompt.split("\n\n")
    assert len(shown) == 2 and all("<extra_id_0>" not in block for block in (*shown, own))
    assert {block.splitlines()[0] for block in shown} <= {
        "New Fact: The country of Oslo is Norway.",
        "New Fact: The country of Lima is Peru.",
    }
    assert last == "New Fact: The country of Paris is Italy\nPrompt: The country of Bonn is <extra_id_0>."
    text = reading.tokenizer.decode(encoded.ids[: encoded.n_encoder], skip_special_tokens=True)
    assert "Oslo" in text and "Bonn" in text
    assert len(encoded.ids) - encoded.n_encoder == 2 + len(encoded.target_ids), "start token, sentinel, target"


def test_ike_keeps_the_contract(reading: tracer.LanguageModel, tmp_path: Path) -> None:
    """One new fact before every query that is like it; others are read as they are."""
    check_contract(reading, IKE(count=0, route="nearest", threshold=0.7), [PARIS], tmp_path)


def test_serac_keeps_the_contract(reading: tracer.LanguageModel, tmp_path: Path) -> None:
    scope = untrained_scope("hashed-words", rank=4, scale=1.0, seed=0)
    check_contract(reading, SERAC(scope=scope), [PARIS], tmp_path)


def test_out_of_scope_the_logits_are_the_models_own_bit_for_bit(reading: tracer.LanguageModel) -> None:
    rows: dict[Any, torch.Tensor] = {}
    target_scores(reading, OTHERS, visit=lambda pair, place, odds: rows.update({(pair, place): odds.clone()}))

    def same(pair: tuple[str, str], place: int, odds: torch.Tensor) -> None:
        assert torch.equal(odds, rows[pair, place])

    with SERAC(scope=untrained_scope("hashed-words", rank=4, scale=1.0, seed=0)).apply(reading, [PARIS]):
        target_scores(reading, OTHERS, visit=same)
        (read,) = routes(reading, [PARIS.prompt])
        fact = "The country of Paris is Italy."
        assert read.prompt == f"New fact: {fact}\n{fact}\n{fact}\n{PARIS.prompt}"


REFUSED: dict[str, Callable[[], Editor]] = {
    "GRACE": lambda: GRACE(layer=1),
    "MemPrompt": MemPrompt,
    "MeLLo": MeLLo,
}


@pytest.mark.parametrize("name", REFUSED)
def test_editors_that_continue_a_text_say_so(knowing: tracer.LanguageModel, name: str) -> None:
    with pytest.raises(AnatomyError, match=f"{name} works on decoder-only models.*CaliNet, T-Patcher, IKE and SERAC"):
        REFUSED[name]().apply(knowing, [PARIS])
    assert not knowing.edits and not knowing.readers


@pytest.mark.parametrize("name", ["rome", "memit", "memprompt"])
def test_an_editor_of_other_models_is_no_failure_of_a_case(knowing: tracer.LanguageModel, name: str) -> None:
    """Else an evaluation would say that an editor fails at each, when it was never tried."""
    editor = editor_named(name, knowing, None if name == "memprompt" else LAST)
    with pytest.raises(AnatomyError, match="works on decoder-only models"):
        made_together(knowing, editor, [PARIS], 0)
    cases = [Case(str(number), request, ()) for number, request in enumerate((PARIS, BONN))]
    with pytest.raises(AnatomyError, match="works on decoder-only models"):
        next(made_each(knowing, editor, cases, 0))


def test_editors_by_name_take_a_decoders_last_layer(knowing: tracer.LanguageModel) -> None:
    assert editor_named("calinet", knowing) == CaliNet(layers=(LAST,))
    assert editor_named("t-patcher", knowing, LAST) == TPatcher()
