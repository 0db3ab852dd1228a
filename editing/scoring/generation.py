"""Text from the model: greedy completions, and seeded samples that leave the global random state alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from editing.request import check_model, check_prompts
from editing.scoring.asking import routes
from editing.scoring.growing_cache import GrowingCache
from tracer.model import LanguageModel
from tracer.model.inputs import prompt_encoding
from tracer.model.tokens import encode
from tracer.progress import bar

SAMPLE_LENGTH = 128  # tokens of a text that the model writes itself
PAST_PERIOD = 24  # characters of an answer that are kept after its first period
# First words of sampled texts, in turn: ordinary prose, rather than whatever follows a bare start token.
OPENINGS = (
    "The",
    "In",
    "A",
    "It",
    "This",
    "When",
    "After",
    "One",
    "There",
    "For",
    "He",
    "She",
    "They",
    "We",
    "At",
    "On",
)


def complete(model: LanguageModel, prompts: Sequence[str], *, new_tokens: int = 20) -> list[str]:
    """The greedy continuation of each prompt, without the prompt; it may end earlier at an end-of-text token.

    Raises:
        BaseModelError: a model that tracer did not open.
        RequestError: one text in place of a sequence.
    """
    check_model(model)
    check_prompts(prompts)
    written = []
    for route in routes(model, prompts):
        encoding = prompt_encoding(route.model, route.prompt)
        ids = torch.tensor([encoding.ids], device=route.model.device)
        whole = continued(route.model, ids, new_tokens, n_encoder=encoding.n_encoder)
        written.append(text_of(route.model, whole[0, ids.shape[1] :].tolist()))
    return written


def answers(model: LanguageModel, prompts: Sequence[str], *, new_tokens: int = 24) -> list[str]:
    """The greedy continuation of each prompt: its first line, cut soon after its first sentence.

    White space in front is dropped. `PAST_PERIOD` characters after a period are kept, for it may belong to an
    abbreviation. Errors as `complete`.
    """
    check_model(model)
    check_prompts(prompts)
    found = [""] * len(prompts)
    for batch in _of_one_length(model, prompts):
        width, answering = batch.ids.shape[1], batch.model

        def all_ended(now: Tensor, width: int = width, answering: LanguageModel = answering) -> bool:
            return all(_first_line(answering, row)[1] for row in now[:, width:].tolist())

        whole = continued(answering, batch.ids, new_tokens, until=all_ended, n_encoder=batch.n_encoder)
        for number, row in zip(batch.numbers, whole[:, width:].tolist(), strict=True):
            found[number] = _first_line(answering, row)[0]
    return found


def seeded_samples(
    model: LanguageModel, prompts: Sequence[str], labels: Sequence[str], *, length: int = 100, top_k: int = 5
) -> list[str]:
    """Prompts with sampled continuations, `length` tokens in all; each text depends on its prompt and label alone.

    Args:
        model: the model.
        prompts: to begin with.
        labels: of each prompt's own stream of random numbers: equal labels draw equal numbers, in any batch.
        length: in tokens, the prompt's included.
        top_k: sample among this many most probable tokens.

    Source: Meng et al. 2022, sec. 3.3 (fluency): top-k 5, 100 tokens.
    """
    found = [""] * len(prompts)
    for batch in _of_one_length(model, prompts):
        new = max(0, length - batch.given)
        draws = np.stack([_stream(labels[number]).random(new) for number in batch.numbers])
        chance = {"top_k": top_k, "draws": torch.from_numpy(draws)}
        written = continued(batch.model, batch.ids, new, n_encoder=batch.n_encoder, **chance)
        for number, row in zip(batch.numbers, written.tolist(), strict=True):
            read = _decoded(batch.model, row[: batch.ids.shape[1]])
            found[number] = prompts[number] + _decoded(batch.model, row).removeprefix(read)
    return found


@dataclass(frozen=True)
class _Batch:
    """Prompts that one model reads, with equally many tokens: nothing need be padded.

    Attributes:
        model: that reads them.
        numbers: their places among the prompts given.
        ids: what it reads, [prompt, token].
        given: tokens of each prompt as it was given.
        n_encoder: how many of the tokens an encoder reads; 0: there is none.
    """

    model: LanguageModel
    numbers: list[int]
    ids: Tensor
    given: int
    n_encoder: int


def _of_one_length(model: LanguageModel, prompts: Sequence[str], most: int = 64) -> Iterator[_Batch]:
    """The prompts in batches of at most `most`."""
    asked = routes(model, prompts)
    encoded = [prompt_encoding(route.model, route.prompt) for route in asked]
    given = [len(prompt_encoding(model, prompt).ids) for prompt in prompts]
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, (route, found) in enumerate(zip(asked, encoded, strict=True)):
        groups.setdefault((id(route.model), len(found.ids), found.n_encoder, given[number]), []).append(number)
    for group in groups.values():
        answering = asked[group[0]].model
        for begin in range(0, len(group), most):
            numbers = group[begin : begin + most]
            ids = torch.tensor([encoded[number].ids for number in numbers], device=answering.device)
            yield _Batch(answering, numbers, ids, given[numbers[0]], encoded[numbers[0]].n_encoder)


def _stream(label: str) -> np.random.Generator:
    """A counter-based stream of random numbers for this label."""
    key = int.from_bytes(hashlib.sha256(label.encode()).digest()[:16], "big")
    return np.random.Generator(np.random.Philox(key=key))


def _first_line(model: LanguageModel, ids: list[int]) -> tuple[str, bool]:
    """The text that `answers` returns for these ids, and whether more ids would leave it as it is."""
    assert model.tokenizer is not None
    text, line_break, _ = text_of(model, ids).lstrip().partition("\n")
    period = text.find(". ")
    stop = period + PAST_PERIOD if period >= 0 else len(text) + 1
    return text[:stop], bool(line_break) or len(text) >= stop or model.tokenizer.eos_token_id in ids


def sample_length(model: LanguageModel) -> int:
    """Tokens of one sampled text: SAMPLE_LENGTH, or what the model's context holds beside a start token."""
    return min(SAMPLE_LENGTH, (model.context_length or SAMPLE_LENGTH + 2) - 2)


def sample_texts(
    model: LanguageModel,
    count: int,
    *,
    length: int,
    seed: int,
    top_k: int,
    openings: Sequence[str] = OPENINGS,
    batch: int = 128,
    progress: bool | None = False,
) -> list[str]:
    """Texts that the model writes by itself, at most `length` tokens each.

    Args:
        model: the model.
        count: how many.
        length: in tokens, the tokenizer's own start token not counted.
        seed: equal seeds give equal texts on equal devices.
        top_k: sample among this many most probable tokens.
        openings: first words, in turn; those with as many tokens as the first are used.
        batch: texts written at a time.
        progress: show a bar.
    """
    model.check_decoder_only("Text that a model writes by itself, which statistics and alarms are taken from,")
    generator = torch.Generator(model.device).manual_seed(seed)
    starts = [encode(model.tokenizer, opening).ids for opening in openings]
    starts = [start for start in starts if len(start) == len(starts[0])]
    own = next(n for n in range(len(starts[0])) if len({start[n] for start in starts}) > 1)  # start tokens: all alike
    texts: list[str] = []
    with bar(count * length, "writing texts", show=progress, unit="token") as steps:
        while len(texts) < count:
            chosen = [starts[(len(texts) + n) % len(starts)] for n in range(min(batch, count - len(texts)))]
            ids = torch.tensor(chosen, device=model.device)
            new = length - ids.shape[1] + own
            step = partial(steps.update, len(chosen))
            out = continued(model, ids, new, top_k=top_k, generator=generator, step=step)
            texts += [text_of(model, row) for row in out[:, own:].tolist()]
    return texts


@torch.inference_mode()
def continued(
    model: LanguageModel,
    ids: Tensor,
    new_tokens: int,
    *,
    top_k: int = 1,
    generator: torch.Generator | None = None,
    draws: Tensor | None = None,
    step: Callable[[], object] = lambda: None,
    until: Callable[[Tensor], bool] = lambda _: False,
    n_encoder: int = 0,
) -> Tensor:
    """`ids` [row, token] with `new_tokens` more, or as many as the context holds: the best, or of the `top_k` best.

    The draw is over k numbers, where transformers' own sampling draws over the whole vocabulary and
    from the global random state. `draws` [row, step] in [0, 1), if given, decide instead of a generator;
    what `until` says of the ids after a step ends it early. The first `n_encoder` tokens are an encoder's.
    """
    room = new_tokens if model.context_length is None else model.context_length + 1 - ids.shape[1]
    model.check_length(ids.shape[1])
    logits_after, fresh = _reader(model, ids[:, :n_encoder]), ids[:, n_encoder:]
    for number in range(min(new_tokens, room)):
        logits = logits_after(fresh)
        model.check_finite(logits)
        best = logits.float().topk(top_k)
        odds, drawn = best.values.softmax(-1), None if draws is None else draws[:, number, None].to(best.values.device)
        fresh = best.indices if top_k == 1 else best.indices.gather(1, _picked(odds, drawn, generator))
        ids = torch.cat((ids, fresh), dim=1)
        step()
        if until(ids):
            break
    return ids


def _reader(model: LanguageModel, read: Tensor) -> Callable[[Tensor], Tensor]:
    """Reads tokens [row, token], each once, and gives the logits after them [row, vocab]; `read` are an encoder's."""
    if not read.shape[1]:
        options: dict[str, Any] = {"past_key_values": GrowingCache(), "use_cache": True, "logits_to_keep": 1}
        return lambda fresh: model.torch(input_ids=fresh, **options).logits[:, -1]
    both = EncoderDecoderCache(DynamicCache(), DynamicCache())
    options = {"encoder_outputs": model.torch.get_encoder()(input_ids=read), "past_key_values": both}
    return lambda fresh: model.torch(decoder_input_ids=fresh, use_cache=True, **options).logits[:, -1]


def _picked(odds: Tensor, drawn: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """Which column of each row of `odds` is drawn, [row, 1]; by inverse transform where numbers were `drawn`."""
    if drawn is None:
        return torch.multinomial(odds, 1, generator=generator)
    below = odds.double().cumsum(-1) <= drawn
    return below.sum(-1, keepdim=True).clamp(max=odds.shape[1] - 1)


def text_of(model: LanguageModel, ids: list[int]) -> str:
    """Ids as text, up to the first end-of-text token."""
    assert model.tokenizer is not None
    ends = [n for n, token in enumerate(ids) if token == model.tokenizer.eos_token_id]
    return _decoded(model, ids[: ends[0]] if ends else ids)


def _decoded(model: LanguageModel, ids: list[int]) -> str:
    assert model.tokenizer is not None
    return str(model.tokenizer.decode(ids, skip_special_tokens=True))
