"""Free-running text: when an answer matches, how a text's entropy and likeness are computed, seeded samples."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

import tracer
from editing.metrics.fluency import TfIdf, consistency, fluency, ngram_entropy, treebank_words
from editing.metrics.matches import gen_contains, gen_exact, normalise
from editing.scoring.generation import answers, complete, seeded_samples


def test_normalising_drops_case_articles_punctuation_and_blanks() -> None:
    assert normalise(" The  Eiffel-Tower, a «landmark»!") == "eiffel tower landmark"


@pytest.mark.parametrize(
    ("text", "answer", "exact", "contained"),
    [
        (" Paris. It is", "Paris", True, True),
        (" the city of Paris\nIt", "Paris", False, True),
        (" St. Louis. It is", "St. Louis", True, True),
        (" Parisian", "Paris", False, False),
        (" Rome. Paris", "Paris", False, False),
        ("\n\nParis\n", "Paris", True, True),
        (" version 3.5. Then", "version 3.5", True, True),
    ],
)
def test_the_first_statement_is_compared(text: str, answer: str, exact: bool, contained: bool) -> None:
    assert (gen_exact(text, answer), gen_contains(text, answer)) == (exact, contained)


def test_entropies_by_hand() -> None:
    assert fluency(["a a a a"]) == 0
    assert (
        fluency(["a b c d"]) == pytest.approx(math.log2(3) / 3 + 2 / 3 * math.log2(2)) == pytest.approx(1.195, abs=5e-4)
    )
    assert fluency(["a"]) == 0
    assert ngram_entropy(["a", "b", "a", "b", "a"], 2) == pytest.approx(1)  # ab, ba, ab, ba
    assert fluency(["a a a a", "a b c d"]) == pytest.approx(0.5975, abs=5e-4)


def test_words_are_split_as_in_the_treebank() -> None:
    said = "He doesn't know (yet) that it's 3,500 metres... \"Why?\" Mt. Everest, etc."
    expected = "He does n't know ( yet ) that it 's 3,500 metres ... \" Why ? \" Mt . Everest , etc ."
    assert treebank_words(said) == expected.split()


def test_consistency_is_an_independent_tf_idf_cosine() -> None:
    random = np.random.RandomState(0)
    words = [f"word{n}" for n in range(30)]
    documents = [" ".join(random.choice(words, 12)) for _ in range(20)]
    vocabulary = sorted({word for document in documents for word in document.split()})
    counts = np.array([[Counter(document.split())[word] for word in vocabulary] for document in documents], float)
    vectors = counts * (np.log((1 + 20) / (1 + (counts > 0).sum(0))) + 1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    weights = TfIdf.fitted(documents)
    for one in range(0, 20, 3):
        for other in range(20):
            assert weights.cosine(documents[one], documents[other]) == pytest.approx(vectors[one] @ vectors[other])


def test_equal_texts_are_wholly_consistent_and_strangers_not_at_all() -> None:
    weights = TfIdf.fitted(["red green", "blue yellow"])
    assert consistency(["red", "green"], ["Red green"], weights) == pytest.approx(1)
    assert consistency(["red green"], ["blue yellow"], weights) == 0
    assert consistency(["unknown"], ["blue"], weights) == 0


def test_an_answer_is_the_first_line_of_the_greedy_text_in_any_batch(family_model: tracer.LanguageModel) -> None:
    prompts = ["France is", "The capital of France is", "Rome is", "The mother tongue of Angela Merkel is"]
    alone = [answers(family_model, [prompt], new_tokens=12)[0] for prompt in prompts]
    assert answers(family_model, prompts, new_tokens=12) == alone
    for text, whole in zip(alone, complete(family_model, prompts, new_tokens=12), strict=True):
        line = whole.lstrip().partition("\n")[0]
        assert line.startswith(text) and (text == line or ". " in text)


def test_a_sample_depends_on_its_label_alone(toy_model: tracer.LanguageModel) -> None:
    before = torch.random.get_rng_state()
    prompts, labels = ["France is", "Rome is", "France is", "The capital of France is"], ["a", "b", "c", "a"]
    together = seeded_samples(toy_model, prompts, labels, length=20)
    alone = [
        seeded_samples(toy_model, [prompt], [label], length=20)[0]
        for prompt, label in zip(prompts, labels, strict=True)
    ]
    assert together == alone
    assert together[0] != together[2]
    assert all(text.startswith(prompt) for text, prompt in zip(together, prompts, strict=True))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_samples_have_the_length_asked_for_with_their_prompt(toy_model: tracer.LanguageModel, monkeypatch) -> None:
    lengths = []
    monkeypatch.setattr("editing.scoring.generation._decoded", lambda _model, ids: lengths.append(len(ids)) or "")
    seeded_samples(toy_model, ["France is", "The capital of France is"], ["a", "b"], length=30)
    assert sorted(lengths)[-2:] == [30, 30]  # the others are prompts alone


def test_draws_follow_the_probabilities_of_the_best_tokens(toy_model: tracer.LanguageModel) -> None:
    prompt = "The capital of France is"
    ids = torch.tensor([toy_model.tokenizer(prompt).input_ids])
    with torch.inference_mode():
        best = toy_model.torch(ids).logits[0, -1].topk(5)
    texts = seeded_samples(toy_model, [prompt] * 2000, list(map(str, range(2000))), length=ids.shape[1] + 1)
    found = Counter(texts)
    for odds, token in zip(best.values.softmax(-1).tolist(), best.indices.tolist(), strict=True):
        text = toy_model.tokenizer.decode([*ids[0].tolist(), token], skip_special_tokens=True)
        assert found[text] / 2000 == pytest.approx(odds, abs=4 * math.sqrt(odds / 2000) + 1e-3)
