"""Text to token ids with character offsets: the one place that knows about BOS and leading spaces.

A subject's ids inside a prompt differ from the ids of the bare string, and an answer's ids depend
on the blank before it. So nothing here matches ids: a text is tokenised once, whole, and tokens
are found by the characters they cover.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tracer.errors import FactError


@dataclass(frozen=True)
class Encoding:
    """Token ids of a text and the characters [start, end) each covers; empty for special tokens.

    The first `n_encoder` are an encoder's, the others its decoder's; 0: there is no encoder.
    """

    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    n_encoder: int = 0


def encode(
    tokenizer: PreTrainedTokenizerBase | None, text: str, *, special: bool = True, closing: bool = False
) -> Encoding:
    """Tokenises `text` once, special tokens in front included; one that closes the text is dropped.

    Args:
        tokenizer: a fast one.
        text: not empty.
        special: whether the tokenizer adds its special tokens.
        closing: keep also those that close the text, as an encoder reads them.

    Raises:
        FactError: there is no tokenizer, it cannot say which characters a token covers, or the text is empty.
    """
    if tokenizer is None:
        raise FactError("This model has no tokenizer: load it with tracer.load(model, tokenizer=...).")
    if not tokenizer.is_fast:
        raise FactError("This tokenizer gives no character offsets: load its fast version (use_fast=True).")
    found = tokenizer(text, return_offsets_mapping=True, add_special_tokens=special)
    offsets = [(int(start), int(end)) for start, end in found["offset_mapping"]]
    covering = [n for n, (start, end) in enumerate(offsets) if end > start]
    if not covering:
        raise FactError("The text is empty. Write the words that the model should continue.")
    # What follows an end-of-text token is read as a new text.
    stop = len(offsets) if closing else covering[-1] + 1
    return Encoding(tuple(found["input_ids"][:stop]), tuple(offsets[:stop]))


def joined(sentence: str, target: str) -> str:
    """Sentence and target with one blank between them, unless either already brings white space."""
    blank = "" if sentence[-1:].isspace() or target[:1].isspace() else " "
    return sentence + blank + target


@dataclass(frozen=True)
class TargetEncoding:
    """A sentence and its continuation, tokenised together.

    Attributes:
        ids: of both.
        n_prompt: how many of them come before the target's first token.
        offsets: characters of each token.
        boundary_merge: the target's first token also covers the end of the sentence.
        n_encoder: as in `Encoding`.
    """

    ids: tuple[int, ...]
    n_prompt: int
    offsets: tuple[tuple[int, int], ...]
    boundary_merge: bool
    n_encoder: int = 0

    @property
    def target_ids(self) -> tuple[int, ...]:
        """Ids of the target."""
        return self.ids[self.n_prompt :]


def encode_with_target(tokenizer: PreTrainedTokenizerBase | None, sentence: str, target: str) -> TargetEncoding:
    """Tokenises sentence and target in one go; the target's tokens are those that end after the sentence.

    Raises:
        FactError: the target has no tokens.
    """
    encoding = encode(tokenizer, joined(sentence, target))
    covered = [n for n, (start, end) in enumerate(encoding.offsets) if end > max(start, len(sentence))]
    if not target.strip() or not covered:
        raise FactError(f"The target {target!r} has no tokens after {sentence!r}. Write the words that should follow.")
    first = covered[0]
    if first == 0:
        raise FactError(f"Nothing comes before the target {target!r}: write a prompt.")
    return TargetEncoding(encoding.ids, first, encoding.offsets, encoding.offsets[first][0] < len(sentence))


def token_span(offsets: Sequence[tuple[int, int]], begin: int, end: int) -> tuple[int, int]:
    """The tokens [first, last + 1) that cover any of the characters [begin, end)."""
    inside = [n for n, (start, stop) in enumerate(offsets) if stop > start and start < end and stop > begin]
    if not inside:
        raise FactError(f"No token covers the characters {begin} to {end} of the prompt.")
    return inside[0], inside[-1] + 1


def right_padded(sequences: Sequence[Sequence[int]], *, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask [row, token]. The mask comes from lengths: a padding id may be a real token too."""
    longest = max(map(len, sequences))
    ids = torch.zeros(len(sequences), longest, dtype=torch.long, device=device)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence, device=device)
        mask[row, : len(sequence)] = 1
    return ids, mask


def visible(tokenizer: PreTrainedTokenizerBase | None, ids: Sequence[int]) -> tuple[str, ...]:
    """Each token as text, its leading blank kept; the id in brackets where there is no tokenizer."""
    if tokenizer is None:
        return tuple(f"[{token}]" for token in ids)
    # Decoding after a neutral token keeps the blank that sentence-piece decoders strip at the start.
    return tuple(_piece(tokenizer, token) for token in ids)


def _piece(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    piece = tokenizer.convert_ids_to_tokens(token)
    text = str(tokenizer.decode([token], clean_up_tokenization_spaces=False))
    starts_word = isinstance(piece, str) and piece[:1] in "▁Ġ"
    return f" {text}" if starts_word and not text.startswith(" ") else text
