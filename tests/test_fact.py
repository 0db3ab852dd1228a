"""A fact becomes tokens: spans by characters, roles, notes, and errors that say what to write."""

from __future__ import annotations

import pytest
import torch
from conftest import make_tokenizer, tiny_gpt2, tiny_llama
from tokenizers import processors

import tracer
from tracer.errors import FactError, TracerWarning
from tracer.fact import ROLES, token_roles
from tracer.model.tokens import encode, encode_with_target, joined, token_span


@pytest.fixture(params=["no BOS", "BOS"])
def model(request: pytest.FixtureRequest, tokenizer, tokenizer_with_bos) -> tracer.LanguageModel:
    torch.manual_seed(0)
    return tracer.load(tiny_llama(), tokenizer=tokenizer_with_bos if request.param == "BOS" else tokenizer)


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("The Space Needle is located in the city of", "The Space Needle"),
        ("The mother tongue of Angela Merkel is", "Angela Merkel"),
        ("The capital of Côte d'Ivoire is", "Côte d'Ivoire"),
        ("Who is J.\u00a0R.\u00a0R. Tolkien? He was born in", "J.\u00a0R.\u00a0R. Tolkien"),
    ],
)
def test_the_span_covers_the_subject_and_no_more(model: tracer.LanguageModel, prompt: str, subject: str) -> None:
    fact = tracer.Fact(prompt, subject).preflight(model)
    begin, end = fact.subject_span
    covered = model.tokenizer.decode(fact.token_ids[begin:end])
    assert covered.strip() == subject
    assert subject not in model.tokenizer.decode(fact.token_ids[begin + 1 : end])


def test_the_special_token_is_shown_and_never_in_the_subject(tokenizer_with_bos) -> None:
    model = tracer.load(tiny_llama(), tokenizer=tokenizer_with_bos)
    fact = tracer.Fact("France has the capital", "France").preflight(model)
    assert fact.special == (0,)
    assert fact.subject_span[0] == 1
    assert "(special)" in str(fact)


def test_the_last_occurrence_is_taken_and_said(model: tracer.LanguageModel) -> None:
    fact = tracer.Fact("Paris is lovely, and Paris is in", "Paris")
    with pytest.warns(TracerWarning, match="occurs 2 times; the last one .character 21. is taken.*subject_at=0"):
        last = fact.preflight(model)
    first = tracer.Fact("Paris is lovely, and Paris is in", "Paris", subject_at=0).preflight(model)
    assert first.subject_span < last.subject_span


def test_an_answer_of_several_tokens_is_traced_at_its_first_and_said(model: tracer.LanguageModel) -> None:
    fact = tracer.Fact("The capital of France is", "France", answer="Zyxwvutopia")
    with pytest.warns(TracerWarning, match="the first, .* is traced"):
        tokenized = fact.preflight(model)
    assert len(tokenized.answer_ids) > 1
    assert tokenized.answer_id == tokenized.answer_ids[0]


@pytest.mark.parametrize("answer", ["Paris", " Paris"])
def test_an_answer_gets_exactly_one_blank(model: tracer.LanguageModel, answer: str) -> None:
    tokenized = tracer.Fact("The capital of France is", "France", answer).preflight(model, warn=False)
    assert model.tokenizer.decode(tokenized.answer_ids) == " Paris"


def test_white_space_at_the_end_of_the_prompt_is_said(model: tracer.LanguageModel) -> None:
    with pytest.warns(TracerWarning, match="ends in white space"):
        tracer.Fact("The capital of France is ", "France").preflight(model)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"prompt": " ", "subject": "x"}, "prompt is empty"),
        ({"prompt": "France is", "subject": ""}, "subject is empty"),
        ({"prompt": "France is", "subject": "france"}, "Did you mean 'France'"),
        ({"prompt": "France is", "subject": "Spain"}, "letter by letter"),
        ({"prompt": "France is", "subject": "France", "answer": " "}, "answer is blank"),
        ({"prompt": "France is", "subject": "France", "subject_at": 3}, "at character 3; it occurs at 0"),
    ],
)
def test_bad_facts_are_refused_when_written(arguments: dict, said: str) -> None:
    with pytest.raises(FactError, match=said):
        tracer.Fact(**arguments)


def test_a_prompt_longer_than_the_context_is_refused(toy_model: tracer.LanguageModel) -> None:
    with pytest.raises(FactError, match="takes 96. Shorten it"):
        tracer.Fact("France " * 100 + "is", "France").preflight(toy_model, warn=False)


def test_a_model_without_tokenizer_says_so() -> None:
    with pytest.raises(FactError, match="tokenizer=..."):
        tracer.Fact("France is", "France").preflight(tracer.load(tiny_gpt2()))


def test_a_span_outside_the_prompt_is_refused() -> None:
    with pytest.raises(FactError, match="does not fit a prompt of 3 tokens"):
        tracer.TokenizedFact((1, 2, 3), (2, 4))


@pytest.mark.parametrize(
    ("n_tokens", "span", "expected"),
    [
        (9, (1, 5), [None, 0, 1, 1, 2, 3, 4, 4, 5]),
        (4, (1, 2), [None, 2, 3, 5]),
        (3, (0, 2), [0, 2, 5]),
        (3, (1, 3), [None, 0, 5]),
    ],
)
def test_every_token_from_the_subject_on_has_one_role(n_tokens: int, span: tuple, expected: list) -> None:
    assert token_roles(n_tokens, span) == [None if role is None else ROLES[role] for role in expected]


def test_sentence_and_target_are_joined_by_one_blank() -> None:
    assert joined("a", "b") == joined("a", " b") == joined("a ", "b") == "a b"


def test_target_tokens_are_those_after_the_sentence(tokenizer) -> None:
    found = encode_with_target(tokenizer, "The capital of France is", "Paris")
    assert found.ids[: found.n_prompt] == encode(tokenizer, "The capital of France is").ids
    assert tokenizer.decode(found.target_ids) == " Paris"
    assert not found.boundary_merge


def test_a_subject_that_ends_inside_a_token_takes_the_token() -> None:
    assert token_span([(0, 0), (0, 4), (4, 9), (9, 12)], 4, 8) == (2, 3)
    assert token_span([(0, 0), (0, 4), (4, 9), (9, 12)], 2, 10) == (1, 4)


def test_white_space_round_the_subject_does_not_move_the_span(model: tracer.LanguageModel) -> None:
    """Some tokenizers' offsets take in the blank before a word, so a trailing blank would reach the next one."""
    plain = tracer.Fact("The Space Needle is in", "The Space Needle").preflight(model)
    assert (
        tracer.Fact("The Space Needle is in", "The Space Needle ").preflight(model).subject_span == plain.subject_span
    )
    assert tracer.Fact("The Space Needle is in", "The Space Needle ").character_span == (0, 16)


def test_a_closing_special_token_is_not_part_of_the_prompt() -> None:
    closing = make_tokenizer(bos=True)
    closing.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    assert encode(closing, "France is").ids == encode(make_tokenizer(bos=True), "France is").ids
    found = encode_with_target(closing, "France is", "big")
    assert closing.decode(found.target_ids) == " big"


def test_an_empty_text_is_refused(tokenizer) -> None:
    with pytest.raises(FactError, match="text is empty"):
        encode(tokenizer, "")
    with pytest.raises(FactError, match="write a prompt"):
        encode_with_target(tokenizer, "", "Paris")


def test_token_ids_the_model_does_not_have_are_refused(toy_model: tracer.LanguageModel) -> None:
    for ids, said in (((5, 600, 7), "600 is outside the model's vocabulary of 600"), ((5,) * 97, "takes 96")):
        with pytest.raises(FactError, match=said):
            tracer.trace(toy_model, tracer.TokenizedFact(ids, (1, 2)), samples=2)
