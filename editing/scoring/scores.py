"""Primitive scores of (prompt, target) pairs, all from one teacher-forced pass.

nll       = -(1/T) sum_t log p(y_t | x, y_<t)      over the target's own tokens
prob      = exp(-nll)                              a geometric mean over tokens, not the joint probability
token_acc = (1/T) sum_t 1[a_t = y_t]               a_t the most probable token at t, ties to the lowest id
tf_exact  = 1 if every a_t = y_t                   equals greedy decoding's first T tokens
agree     = (1/T) sum_t 1[a_t = a'_t]              two models, forced with the same target

What is read twice is computed once: equal pairs, pairs whose input begins another's (both one-token
targets of a prompt), what many inputs begin with, and equal positions before the head. Only target positions
meet the head.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from editing.padding import call_tokens, least_padding
from editing.scoring.asking import goes_by_prompt_ends, routes
from editing.scoring.forced_decoder import forced_log_probs
from editing.scoring.prefix import Ids, Prefix, begin_alike, common_length, read_once
from tracer.model import LanguageModel
from tracer.model.foreign import has_foreign_forward
from tracer.model.inputs import target_encoding
from tracer.model.prompt_ends import prompts_end_at
from tracer.model.tokens import TargetEncoding, right_padded
from tracer.precision import wide

TOKENS = 1024  # padded tokens in one pass
SEEN = 8192  # the same with those of a prefix that is read once
ROWS = 64  # positions that meet the head together
WHOLE_OUTPUT_TOKENS = 128  # padded tokens in one pass that gives logits everywhere

Pair = tuple[str, str]
Row = tuple[Ids, int | None]  # an input, and where its prompt ends if that matters
Visit = Callable[[Pair, int, Tensor], None]


@dataclass(frozen=True)
class TargetScore:
    """How a model scores one target after one prompt.

    Attributes:
        nll_sum: over the target's tokens, nats.
        target: the target's token ids.
        predicted: the most probable id at each of them, the target tokens before it given.
    """

    nll_sum: float
    target: Ids
    predicted: Ids

    @property
    def nll(self) -> float:
        """Mean over the target's tokens."""
        return self.nll_sum / len(self.target)

    @property
    def prob(self) -> float:
        """exp(-nll), the geometric mean of the token probabilities."""
        return math.exp(-self.nll)

    @property
    def token_acc(self) -> float:
        """The share of target tokens that are the most probable one."""
        return _share_equal(self.predicted, self.target)

    @property
    def tf_exact(self) -> bool:
        """Every target token is the most probable one, the tokens before it given."""
        return self.predicted == self.target

    def agree(self, other: TargetScore) -> float:
        """The share of positions where both models prefer the same token."""
        return _share_equal(self.predicted, other.predicted)


def target_scores(
    model: LanguageModel, pairs: Sequence[Pair], *, visit: Visit | None = None, share: bool = True
) -> list[TargetScore]:
    """Scores (prompt, target) pairs, in their order; one blank between them unless the target brings it.

    Args:
        model: as it is now, edits and hooks included.
        pairs: prompts with their targets.
        visit: called with each different pair, each position in its target and the log-probabilities there, [vocab].
        share: read a pair whose input begins another pair's off that one's pass, and long common beginnings once.

    Raises:
        FactError: a target without tokens, or a text longer than the model's context.
        NumericsError: logits that are not finite.
    """
    prompts = list(dict.fromkeys(prompt for prompt, _ in pairs))
    asked = dict(zip(prompts, routes(model, prompts), strict=True))
    found: dict[Pair, TargetScore] = {}
    for answering in {id(route.model): route.model for route in asked.values()}.values():
        encodings = {
            pair: target_encoding(answering, asked[pair[0]].prompt, pair[1])
            for pair in dict.fromkeys(pairs)
            if asked[pair[0]].model is answering
        }
        found |= _scores(answering, encodings, visit, share=share)
    return [found[pair] for pair in pairs]


def _scores(
    model: LanguageModel, encodings: Mapping[Pair, TargetEncoding], visit: Visit | None, *, share: bool
) -> dict[Pair, TargetScore]:
    model.check_length(max((len(encoding.ids) - 1 for encoding in encodings.values()), default=0))
    if model.is_encoder_decoder:
        return _decoder_scores(model, encodings, visit)
    by_end = goes_by_prompt_ends(model)
    hosts = _hosts(encodings.values(), share=share and not by_end)
    readers: dict[Row, list[Pair]] = {}
    for pair, encoding in encodings.items():
        end = encoding.n_prompt - 1 if by_end else None
        readers.setdefault((hosts[encoding.ids[:-1]], end), []).append(pair)
    whole = _wrapped(model)
    found: dict[Pair, TargetScore] = {}
    for group, prefix in _groups(model, readers, encodings, share=share and not by_end and not whole):
        for rows in _batches(model, group, WHOLE_OUTPUT_TOKENS if whole else TOKENS, prefix.length if prefix else 0):
            served = [{pair: encodings[pair] for pair in readers[row]} for row in rows]
            with prompts_end_at(model, [end for _, end in rows if end is not None]) if by_end else nullcontext():
                found |= _batch_scores(model, [ids for ids, _ in rows], served, visit, prefix)
    return found


def _decoder_scores(
    model: LanguageModel, encodings: Mapping[Pair, TargetEncoding], visit: Visit | None
) -> dict[Pair, TargetScore]:
    """The encoder reads the prompt, the decoder is forced with the target."""
    found: dict[Pair, TargetScore] = {}
    for pair, log_probs in forced_log_probs(model, encodings):
        target = encodings[pair].target_ids
        nll = -sum(float(at[token]) for at, token in zip(log_probs, target, strict=True))
        found[pair] = TargetScore(nll, target, tuple(log_probs.argmax(-1).tolist()))
        for place, at in enumerate(log_probs if visit is not None else ()):
            visit(pair, place, at)  # pyright: ignore[reportOptionalCall]
    return found


def _groups(
    model: LanguageModel,
    readers: Mapping[Row, Sequence[Pair]],
    encodings: Mapping[Pair, TargetEncoding],
    *,
    share: bool,
) -> Iterator[tuple[list[Row], Prefix | None]]:
    """Rows with the beginning that they share, where it is long; it ends before the first position that is read."""
    if not share:
        yield list(readers), None
        return
    for alike in begin_alike(ids for ids, _ in readers):
        group: list[Row] = [(ids, None) for ids in alike]
        first = min(encodings[pair].n_prompt - 1 for row in group for pair in readers[row])
        length = common_length([ids[:first] for ids in alike])
        yield group, read_once(model, alike[0][:length])


def _hosts(encodings: Iterable[TargetEncoding], *, share: bool) -> dict[Ids, Ids]:
    """For each input one that begins with it: with causal attention its states are read off that one's."""
    inputs = sorted({encoding.ids[:-1] for encoding in encodings}, reverse=True)
    hosts: dict[Ids, Ids] = {}
    last: Ids = ()
    for ids in inputs:
        if not share or last[: len(ids)] != ids:
            last = ids
        hosts[ids] = last
    return hosts


def _batches(model: LanguageModel, rows: Sequence[Row], tokens: int, read: int = 0) -> Iterator[list[Row]]:
    """Rows whose first `read` tokens are read, in batches of at most so many padded tokens that cost least."""
    lengths, overhead = [len(ids) - read for ids, _ in rows], call_tokens(model.device)
    for batch in least_padding(lengths, most=tokens, overhead=overhead, read=read, most_seen=SEEN):
        yield [rows[number] for number in batch]


@torch.inference_mode()
def _batch_scores(
    model: LanguageModel,
    rows: Sequence[Ids],
    served: Sequence[Mapping[Pair, TargetEncoding]],
    visit: Visit | None,
    prefix: Prefix | None,
) -> dict[Pair, TargetScore]:
    readers: dict[tuple[int, int], list[tuple[Pair, int, int]]] = {}  # (row, position): (pair, place, target id)
    for row, encodings in enumerate(served):
        for pair, encoding in encodings.items():
            for place, token in enumerate(encoding.target_ids):
                readers.setdefault((row, encoding.n_prompt - 1 + place), []).append((pair, place, token))
    nll: dict[Pair, float] = {}
    predicted: dict[Pair, list[int]] = {}
    for positions, log_probs in _log_probs(model, rows, sorted(readers), prefix):
        best = log_probs.argmax(-1).tolist()
        for at, position in enumerate(positions):
            for pair, place, token in readers[position]:
                nll[pair] = nll.get(pair, 0.0) - float(log_probs[at, token])
                predicted.setdefault(pair, []).append(best[at])
                if visit is not None:
                    visit(pair, place, log_probs[at])
    targets = {pair: encoding.target_ids for encodings in served for pair, encoding in encodings.items()}
    return {pair: TargetScore(nll[pair], target, tuple(predicted[pair])) for pair, target in targets.items()}


def _log_probs(
    model: LanguageModel, rows: Sequence[Ids], positions: Sequence[tuple[int, int]], prefix: Prefix | None
) -> Iterator[tuple[Sequence[tuple[int, int]], Tensor]]:
    """Log-probabilities [position, vocab] at (row, token) positions, some at a time, float32 or better."""
    read = prefix.length if prefix else 0
    ids, mask = right_padded([row[read:] for row in rows], device=model.device)
    inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    inputs = prefix.before(ids, mask) if prefix else inputs
    whole = model.torch(**inputs).logits if _wrapped(model) else None
    # The base model's output is after the final norm.
    hidden = model.torch.base_model(**inputs).last_hidden_state if whole is None else whole
    for begin in range(0, len(positions), ROWS):
        some = positions[begin : begin + ROWS]
        row, token = [row for row, _ in some], [token - read for _, token in some]
        logits = hidden[row, token] if whole is not None else model.anatomy.logits(hidden[row, token])
        model.check_finite(logits)
        yield some, wide(logits).log_softmax(-1)


def _wrapped(model: LanguageModel) -> bool:
    """Whether someone acts on the whole model's input or output: then only its own logits will do."""
    outer = model.torch
    return bool(outer._forward_hooks or outer._forward_pre_hooks or has_foreign_forward(outer))


def _share_equal(some: Ids, others: Ids) -> float:
    return sum(a == b for a, b in zip(some, others, strict=True)) / len(some)
