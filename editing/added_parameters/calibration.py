"""How far queries lie apart in a model, to choose a codebook's radius by.

    own        |q(paraphrase) - q(its edit's prompt)|          to be reached
    unrelated  min over edits |q(prompt) - q(edit's prompt)|   to be spared
No one radius fits all models: distances grow with their activations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from editing.early_end import hooked_until
from editing.edit import original_fingerprint, unedited
from editing.errors import RequestError
from tracer.anatomy.hidden import by_token
from tracer.facts import bundled, paraphrases, spread_over_relations
from tracer.model import LanguageModel
from tracer.model.tokens import encode, right_padded

BATCH = 32
EDITS, PARAPHRASES, NEIGHBOURS = 24, 1, 4  # of bundled facts: edits, and for each of them other prompts
LEAST = 1e-6  # radius where even other prompts give one query
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Calibration:
    """Distances at one layer, rising.

    Attributes:
        layer: where.
        own: of paraphrases to their own edit's prompt.
        unrelated: of other prompts to the nearest edit's prompt.
    """

    layer: int
    own: tuple[float, ...]
    unrelated: tuple[float, ...]

    def quantiles(self, of: str = "own") -> dict[float, float]:
        """Quantile -> distance, of "own" or "unrelated".

        Raises:
            RequestError: of something else.
        """
        if of not in ("own", "unrelated"):
            raise RequestError(f'There are no distances {of!r}. Write "own" or "unrelated".')
        distances = torch.tensor(getattr(self, of), dtype=torch.float64)
        return {share: float(distances.quantile(share)) for share in QUANTILES}

    def radius(self, spared: float = 0.95) -> float:
        """The largest radius outside of which this share of the unrelated prompts stays; never quite 0.

        Raises:
            RequestError: no share.
        """
        if not 0 <= spared <= 1:
            raise RequestError(f"spared={spared!r} is not from 0 to 1. Write spared=0.95.")
        return max(float(torch.tensor(self.unrelated, dtype=torch.float64).quantile(1 - spared)), LEAST)

    def reached(self, radius: float) -> float:
        """The share of paraphrases inside a radius."""
        return sum(distance <= radius for distance in self.own) / len(self.own)


def calibrated_on_bundled_facts(model: LanguageModel, layer: int) -> Calibration:
    """Of the unedited model: bundled facts of many relations as edits, the same questions about others to be spared.

    Measured once, then remembered by the model object.
    """
    key = ("distances of queries", original_fingerprint(model), layer)
    if key not in model.remembered:
        edits = spread_over_relations(bundled())[:EDITS]
        prompts = {fact.prompt: paraphrases(fact.prompt, fact.subject)[:PARAPHRASES] for fact in edits}
        others = []
        for fact in edits:
            neighbours = [one.prompt for one in bundled(fact.relation) if one.subject != fact.subject]
            others += [prompt for prompt in neighbours if prompt not in prompts][:NEIGHBOURS]
        with unedited(model):
            model.remembered[key] = calibrate(model, layer, prompts, others)
    return model.remembered[key]


def calibrate(
    model: LanguageModel, layer: int, prompts: Mapping[str, Sequence[str]], unrelated: Sequence[str]
) -> Calibration:
    """Measures a layer.

    Args:
        model: as it is now.
        layer: of the value matrix.
        prompts: prompts to edit, each with its paraphrases.
        unrelated: prompts that no edit should reach.

    Raises:
        RequestError: no paraphrase or no unrelated prompt.
    """
    if not isinstance(prompts, Mapping):
        raise RequestError("prompts holds paraphrases by prompt. Write {prompt: [paraphrase, ...], ...}.")
    paraphrases = [(other, own) for own, others in prompts.items() for other in others]
    if not paraphrases or not unrelated:
        raise RequestError("Distances of both kinds are needed. Give paraphrases and unrelated prompts.")
    texts = list(dict.fromkeys([*prompts, *(other for other, _ in paraphrases), *unrelated]))
    at = dict(zip(texts, queries(model, layer, texts), strict=True))
    own = [float((at[other] - at[prompt]).norm()) for other, prompt in paraphrases]
    edited = torch.stack([at[prompt] for prompt in prompts])
    others = [float((edited - at[prompt]).norm(dim=-1).min()) for prompt in unrelated]
    return Calibration(layer, tuple(sorted(own)), tuple(sorted(others)))


def queries(model: LanguageModel, layer: int, prompts: Sequence[str]) -> Tensor:
    """What enters the value matrix at each prompt's last token, float64 [prompt, n_in]."""
    return queries_at_ends(model, layer, [encode(model.tokenizer, prompt).ids for prompt in prompts])


def queries_at_ends(model: LanguageModel, layer: int, texts: Sequence[Sequence[int]]) -> Tensor:
    """What enters the value matrix at the last of each text's token ids, float64 [text, n_in]."""
    matrix, found = model.anatomy.value_matrix(layer), []
    for begin in range(0, len(texts), BATCH):
        ids, mask = right_padded(texts[begin : begin + BATCH], device=model.device)
        each, ends = torch.arange(len(ids), device=ids.device), mask.sum(1) - 1

        def keep(_module: nn.Module, inputs: tuple[Any, ...], _output: Any, each=each, ends=ends) -> None:
            found.append(by_token(inputs[0], len(each))[each, ends].double())

        with torch.no_grad(), hooked_until([(matrix, keep)]):
            model.torch.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
    return torch.cat(found)
