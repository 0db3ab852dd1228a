"""The texts that a patch's memory is read off: half of its rows come from each kind.

said      bundled facts with their answers, as near to a request as texts get
written   text that the model writes itself; of an encoder-decoder what its decoder writes to bundled prompts
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from editing.added_parameters.last_layer import first_seen
from editing.scoring.generation import continued, sample_length, sample_texts
from tracer.facts import bundled, spread_over_relations
from tracer.model import LanguageModel
from tracer.model.inputs import prompt_encoding, target_encoding
from tracer.model.tokens import Encoding, encode

ANSWER = 8  # tokens that a decoder writes
TOP_K = 50


@dataclass(frozen=True)
class Read:
    """A text as a model reads it.

    Attributes:
        ids: an encoder's first.
        n_encoder: how many are an encoder's; 0: there is none.
        first: the first of the others whose state counts.
        subject: that the text is about; "" where it is about none in particular.
    """

    ids: tuple[int, ...]
    n_encoder: int = 0
    first: int = 1
    subject: str = ""


def said(model: LanguageModel) -> list[Read]:
    """Bundled facts, as many relations early on as there are."""
    found = []
    for fact in spread_over_relations([fact for fact in bundled() if fact.answer]):
        whole = target_encoding(model, fact.prompt, fact.answer or "")
        # The last token of a decoder's answer predicts nothing that an edit is about.
        ids = whole.ids[:-1] if whole.n_encoder else whole.ids[: sample_length(model)]
        found.append(Read(ids, whole.n_encoder, first_seen(whole), fact.subject))
    return found


def written(model: LanguageModel, n_rows: int, seed: int) -> list[Read]:
    """Texts that the model writes by itself, enough for so many rows if it has that much to say."""
    if model.is_encoder_decoder:
        return _answers(model, n_rows, seed)
    length = sample_length(model)
    texts = sample_texts(model, -(-n_rows // (length - 1)), length=length, seed=seed, top_k=TOP_K)
    return [Read(encode(model.tokenizer, text).ids[:length]) for text in texts]


def _answers(model: LanguageModel, n_rows: int, seed: int) -> list[Read]:
    """Sampled answers to bundled prompts, up to where they end; prompts of one length are answered together."""
    assert model.tokenizer is not None
    generator = torch.Generator(model.device).manual_seed(seed)
    facts = spread_over_relations(bundled())[: -(-n_rows // ANSWER)]
    groups: dict[tuple[int, int], list[tuple[str, Encoding]]] = {}
    for fact in facts:
        read = prompt_encoding(model, fact.prompt)
        groups.setdefault((len(read.ids), read.n_encoder), []).append((fact.subject, read))
    found = []
    for (length, n_encoder), group in groups.items():
        ids = torch.tensor([read.ids for _, read in group], device=model.device)
        rows = continued(model, ids, ANSWER, top_k=TOP_K, generator=generator, n_encoder=n_encoder).tolist()
        for (subject, _), row in zip(group, rows, strict=True):
            found.append(
                Read(_ended(row, length, model.tokenizer.eos_token_id), n_encoder, length - n_encoder - 1, subject)
            )
    return found


def _ended(row: Sequence[int], length: int, end: object) -> tuple[int, ...]:
    """What is read and written, up to the first token `end` behind the first `length`."""
    stop = next((place for place in range(length, len(row)) if row[place] == end), len(row))
    return tuple(row[:stop])
