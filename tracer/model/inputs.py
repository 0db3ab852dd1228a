"""Prompt and target as the token ids that a model reads: one text, or an encoder's and a decoder's.

Of an encoder-decoder a row of ids holds both, one after the other, so that a token has one number:
    encoder   the prompt, with all special tokens that the tokenizer adds
    decoder   the start token, what the answer follows (nothing, or a sentinel), the target so far
A sentinel such as <extra_id_0> marks a span that the decoder is to fill in: T5 was trained so.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from tracer.errors import FactError
from tracer.model.language_model import LanguageModel
from tracer.model.tokens import Encoding, TargetEncoding, encode, encode_with_target, joined

SENTINEL = re.compile(r"<extra_id_\d+>")


def prompt_encoding(model: LanguageModel, prompt: str) -> Encoding:
    """All that the model reads before an answer; errors as `tracer.model.tokens.encode`."""
    if not model.is_encoder_decoder:
        return encode(model.tokenizer, prompt)
    starts = decoder_text(model, prompt)
    missing = SENTINEL.fullmatch(starts) and starts not in prompt
    read = encode(model.tokenizer, joined(prompt, starts) if missing else prompt, closing=True)
    # The characters are the prompt's: a sentinel that was put behind it has none of them.
    offsets = tuple((0, 0) if start >= len(prompt) else (start, end) for start, end in read.offsets)
    before = encode(model.tokenizer, starts, special=False).ids if starts else ()
    written = (model.decoder_start_id, *before)
    return Encoding((*read.ids, *written), (*offsets, *((0, 0) for _ in written)), len(read.ids))


def target_encoding(model: LanguageModel, prompt: str, target: str) -> TargetEncoding:
    """The same with a target behind it; errors as `tracer.model.tokens.encode_with_target`."""
    if not model.is_encoder_decoder:
        return encode_with_target(model.tokenizer, prompt, target)
    if not target.strip():
        raise FactError(f"The target {target!r} has no tokens. Write the words that the decoder should write.")
    asked, starts = prompt_encoding(model, prompt), decoder_text(model, prompt)
    text = joined(starts, target.strip()) if starts else target.strip()
    written = encode(model.tokenizer, text, special=False)
    read = asked.n_encoder + 1  # what the encoder reads, and the start token
    before = asked.ids[read:]
    # T5's sentinels take the blanks around them, so their characters do not say where they end.
    merged = written.ids[: len(before)] != before
    first = next(n for n, (_, end) in enumerate(written.offsets) if end > len(starts)) if merged else len(before)
    offsets = (*asked.offsets[:read], *((0, 0) for _ in written.ids))
    return TargetEncoding((*asked.ids[:read], *written.ids), read + first, offsets, merged, asked.n_encoder)


def sentence(prompt: str, target: str) -> str:
    """Both as one text: the target in the gap that a sentinel marks in the prompt, else behind the prompt."""
    found = SENTINEL.search(prompt)
    if found is None:
        return joined(prompt, target)
    return prompt[: found.start()] + target.strip() + prompt[found.end() :]


def without_gap(text: str) -> str:
    """The text without its sentinels: they say nothing of what it is about."""
    return " ".join(SENTINEL.sub(" ", text).split()) if SENTINEL.search(text) else text


def decoder_text(model: LanguageModel, prompt: str) -> str:
    """What the decoder reads between its start token and the answer: the prompt's own sentinel, else the model's."""
    found = SENTINEL.search(prompt)
    return found[0] if found else model.decoder_starts


def inputs_of(ids: Tensor, n_encoder: int) -> dict[str, Any]:
    """The arguments of a model for rows of ids [row, token], of which the encoder reads the first `n_encoder`."""
    if not n_encoder:
        return {"input_ids": ids}
    return {"input_ids": ids[:, :n_encoder], "decoder_input_ids": ids[:, n_encoder:]}
