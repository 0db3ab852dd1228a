"""IKE: what stands before a query, in which order, and that nothing of a test subject is shown."""

from __future__ import annotations

from collections import Counter

import pytest
from remembering import FLAT, MADRID, PAIRS, PROMPTS, ROME, reading_model, same_states, states
from transformers import PreTrainedTokenizerFast

import tracer
from editing import IKE, EditFailedError, EditRequest, RequestError
from editing.editors import editor_named
from editing.memory import ScopedFact, ScopedFacts, bundled_facts
from editing.memory.demonstrations import BREAK, TYPES, block, demonstrated, types_of
from editing.memory.memory import memory_of
from editing.memory.record import MemoryRecord
from editing.scoring.asking import routes
from editing.scoring.generation import complete
from editing.scoring.scores import target_scores
from tracer.model.tokens import encode
from tracer.storage import write_json

ICE = "New Fact: The capital of France is Rome\nPrompt: "


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast) -> tracer.LanguageModel:
    return reading_model(tokenizer)


def record_of(model: tracer.LanguageModel, editor: IKE, request: EditRequest = ROME, seed: int = 0) -> MemoryRecord:
    with editor.apply(model, [request], seed=seed):
        memory = memory_of(model, editor)
        assert memory is not None
        return memory.records[0]


def read(model: tracer.LanguageModel, prompt: str) -> str:
    return routes(model, [prompt])[0].prompt


def test_the_types_are_shared_out_one_to_three_to_four() -> None:
    assert types_of(32) == {"copy": 4, "update": 12, "retain": 16}
    assert types_of(16) == {"copy": 2, "update": 6, "retain": 8}
    assert types_of(1) == {"copy": 0, "update": 0, "retain": 1} and sum(types_of(0).values()) == 0
    assert types_of(5) == {"copy": 1, "update": 2, "retain": 2}  # 0.625, 1.875, 2.5: remainders .625 and .875
    assert all(sum(types_of(count).values()) == count for count in range(40))


def test_each_type_shows_what_its_name_says() -> None:
    fact = ScopedFact("Ada plays", "Ada", "chess", ("Ada is good at",), (("Alan plays", "go"),))
    said = {
        "copy": "New Fact: Ada plays chess\nPrompt: Ada plays chess",
        "update": "New Fact: Ada plays chess\nPrompt: Ada is good at chess",
        "retain": "New Fact: Ada plays chess\nPrompt: Alan plays go",
    }
    found = demonstrated([fact] * 32, seed=3)
    assert Counter(kind for kind, _ in found) == {"copy": 4, "update": 12, "retain": 16}
    assert all(text == said[kind] for kind, text in found)


def test_a_seed_says_the_types_and_another_seed_says_others() -> None:
    facts = bundled_facts().facts[:32]
    assert demonstrated(facts, 0) == demonstrated(facts, 0)
    assert [kind for kind, _ in demonstrated(facts, 0)] != [kind for kind, _ in demonstrated(facts, 1)]


def test_the_prompt_is_demonstrations_then_the_edits_own_block_then_the_query(model: tracer.LanguageModel) -> None:
    weights, before = states(model), target_scores(model, PAIRS)
    with IKE(count=8).apply(model, [ROME]) as edit:
        blocks = read(model, PROMPTS[2]).split(BREAK)
        assert len(blocks) == 10 and all(text.startswith("New Fact: ") for text in blocks)
        assert blocks[-2] == f"{ICE}The capital of France is Rome" and blocks[-1] == f"{ICE}{PROMPTS[2]}"
        assert edit.diagnostics[0]["shown"] == 8 and edit.diagnostics[0]["dropped"] == 0
        assert all(now.nll != old.nll for now, old in zip(target_scores(model, PAIRS), before, strict=True))
        assert complete(model, PROMPTS[:1], new_tokens=4) != []
        assert same_states(model, weights)
    assert target_scores(model, PAIRS) == before and same_states(model, weights)


def test_the_most_similar_fact_is_shown_last_and_the_subject_never() -> None:
    near = ScopedFact("The capital of Spain is", "Spain", "Oslo", ("Spain's capital:",), (("Cats eat", "mice"),))
    far = ScopedFact("Trees have", "Trees", "wheels", ("A tree has",), (("Cats eat", "mice"),))
    own = ScopedFact("The capital of France is", "France", "Oslo", ("France's capital:",), (("Cats eat", "mice"),))
    told = ScopedFact("The capital of Italy is", "Italy", "Oslo", ("Italy's:",), (("The capital of france is", "P"),))
    editor = IKE(count=2, demonstrations=ScopedFacts("test", (near, own, far, told)))
    assert editor._like(MemoryRecord.of(ROME)) == [far, near]
    with pytest.raises(RequestError, match="has 2 facts that do not name 'France'. Write count=2"):
        IKE(count=3, demonstrations=editor.demonstrations)._like(MemoryRecord.of(ROME))


def test_no_demonstration_names_the_subject(model: tracer.LanguageModel) -> None:
    shown = record_of(model, IKE()).shown
    assert len(shown) == 33 and all("France" not in text for text in shown[:-1])


def test_without_demonstrations_only_the_new_fact_is_there(model: tracer.LanguageModel) -> None:
    with IKE(count=0).apply(model, [ROME]):
        assert read(model, PROMPTS[1]) == f"{ICE}{PROMPTS[1]}"


def test_the_least_similar_blocks_go_where_the_context_is_short(tokenizer: PreTrainedTokenizerFast) -> None:
    short = reading_model(tokenizer, context=256)
    whole = record_of(reading_model(tokenizer), IKE())
    for reserve in (16, 60, 100):
        with IKE(reserve=reserve).apply(short, [ROME]) as edit:
            dropped = edit.diagnostics[0]["dropped"]
            text = read(short, ROME.prompt)
            assert text == BREAK.join((*whole.shown[dropped:], block("The capital of France is Rome", ROME.prompt)))
            n_tokens = len(encode(tokenizer, text).ids)
            more = len(encode(tokenizer, f"{whole.shown[dropped - 1]}{BREAK}{text}").ids)
            assert 0 < dropped < 32 and n_tokens <= 256 - reserve < more
            assert target_scores(short, [(ROME.prompt, "Rome")])


def test_the_new_fact_stays_however_short_the_context(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(EditFailedError, match="new fact and a question take .* reads 32"):
        IKE(reserve=31).apply(reading_model(tokenizer, context=32), [ROME])
    tiny = reading_model(tokenizer, context=64)
    with IKE(reserve=63).apply(tiny, [ROME]):
        assert read(tiny, ROME.prompt).split(BREAK) == [f"{ICE}{ROME.prompt} Rome", f"{ICE}{ROME.prompt}"]


def test_one_seed_makes_one_prompt(model: tracer.LanguageModel) -> None:
    assert record_of(model, IKE(), seed=1) == record_of(model, IKE(), seed=1) != record_of(model, IKE(), seed=2)


def test_its_own_route_takes_one_fact_and_says_what_takes_more(model: tracer.LanguageModel) -> None:
    with IKE(count=0).apply(model, [ROME]):
        with pytest.raises(EditFailedError, match='route="nearest"'):
            IKE(count=0).apply(model, [MADRID])
        assert read(model, PROMPTS[0]).startswith(ICE) and len(model.edits) == 1


def test_the_nearest_route_finds_the_fact_or_leaves_the_query_alone(model: tracer.LanguageModel) -> None:
    before = target_scores(model, PAIRS)
    with IKE(count=0, route="nearest").apply(model, [MADRID, ROME]):
        assert read(model, PROMPTS[0]) == f"{ICE}{PROMPTS[0]}" and "Japan is Madrid" in read(model, PROMPTS[1])
        assert target_scores(model, PAIRS)[6:] == before[6:]


def test_demonstrations_come_from_a_file_by_name(model: tracer.LanguageModel, tmp_path) -> None:
    write_json(tmp_path / "facts.json", [FLAT])
    editor = editor_named("ike", model, demonstrations=tmp_path / "facts.json", count=1)
    with editor.apply(model, [ROME]) as edit:
        assert "Ada" in read(model, PROMPTS[0]) and "facts.json (n=1" in edit.diagnostics[0]["demonstrations"]


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(RequestError, match='route="own" or route="nearest"'):
        IKE(route="any")  # pyright: ignore[reportArgumentType]
    for wrong, said in (
        ({"count": -1}, "count=-1 is below 0. Write count=32"),
        ({"count": 1.5}, "count=1.5 is no whole number"),
        ({"reserve": -1}, "Write reserve=64"),
        ({"threshold": "0.5"}, "threshold='0.5' is no number"),
        ({"demonstrations": ["a"]}, "read_scoped_facts"),
    ):
        with pytest.raises(RequestError, match=said):
            IKE(**wrong)
    assert len(TYPES) == 3
