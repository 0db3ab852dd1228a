"""Text from the model: greedy completions, and seeded samples that leave the global random state alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from transformers import DynamicCache

from tracer.model import LanguageModel
from tracer.progress import bar
from tracer.tokens import encode

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
    """The greedy continuation of each prompt, without the prompt; it may end earlier at an end-of-text token."""
    written = []
    for prompt in prompts:
        ids = torch.tensor([encode(model.tokenizer, prompt).ids], device=model.device)
        written.append(_text(model, continued(model, ids, new_tokens)[0, ids.shape[1] :].tolist()))
    return written


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
            texts += [_text(model, row) for row in out[:, own:].tolist()]
    return texts


@torch.inference_mode()
def continued(
    model: LanguageModel,
    ids: Tensor,
    new_tokens: int,
    *,
    top_k: int = 1,
    generator: torch.Generator | None = None,
    step: Callable[[], object] = lambda: None,
) -> Tensor:
    """`ids` [row, token] with `new_tokens` more, or as many as the context holds: the best, or of the `top_k` best.

    The draw is over k numbers, where transformers' own sampling draws over the whole vocabulary and
    from the global random state.
    """
    room = new_tokens if model.context_length is None else model.context_length + 1 - ids.shape[1]
    model.check_length(ids.shape[1])
    cache, fresh = DynamicCache(), ids
    for _ in range(min(new_tokens, room)):
        logits = model.torch(input_ids=fresh, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        model.check_finite(logits)
        best = logits.float().topk(top_k)
        pick = torch.multinomial(best.values.softmax(-1), 1, generator=generator) if top_k > 1 else None
        fresh = best.indices if pick is None else best.indices.gather(1, pick)
        ids = torch.cat((ids, fresh), dim=1)
        step()
    return ids


def _text(model: LanguageModel, ids: list[int]) -> str:
    """Ids as text, up to the first end-of-text token."""
    assert model.tokenizer is not None
    ends = [n for n, token in enumerate(ids) if token == model.tokenizer.eos_token_id]
    return str(model.tokenizer.decode(ids[: ends[0]] if ends else ids, skip_special_tokens=True))
