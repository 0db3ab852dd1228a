"""What the unedited model says, asked once: kept in memory and, given a folder, on disk for every later run.

Questions that are asked together share matrix products, and with other company a score may round otherwise. So
what is kept is a whole ask, and only the same ask finds it: no score depends on what was asked before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor

from editing.errors import EvaluationError
from editing.evaluation.lines import Lines
from editing.scoring.distributions import MAX_BYTES, Distributions
from editing.scoring.generation import answers
from editing.scoring.scores import Pair, TargetScore, target_scores
from tracer.model import LanguageModel


class UneditedModel:
    """A model before its edits.

    Attributes:
        fingerprint: of its weights.
        distributions: of the pairs that were asked for with `keep`.
    """

    def __init__(self, model: LanguageModel, folder: str | Path | None = None, *, max_bytes: int = MAX_BYTES) -> None:
        if model.edits:
            raise EvaluationError(f"{model.name} is edited already. Undo {model.edits[-1]!r} first.")
        self.model = model
        self.fingerprint = model.fingerprint()
        self.distributions = Distributions(max_bytes)
        self._scores: dict[Pair, TargetScore] = {}
        self._asks: dict[tuple[Pair, ...], tuple[TargetScore, ...]] = {}
        self._texts: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._score_lines = None if folder is None else Lines(Path(folder) / "base_scores.jsonl")
        self._text_lines = None if folder is None else Lines(Path(folder) / "base_texts.jsonl")
        self._read()

    def ask(self, pairs: Sequence[Pair], *, keep: Iterable[Pair] = ()) -> dict[Pair, TargetScore]:
        """Scores of these pairs; the distributions of those in `keep` are held for KL.

        Raises:
            EvaluationError: this was not asked yet and the model is edited.
        """
        room = self.distributions.room > 0
        kept = dict.fromkeys(pair for pair in keep if room and pair not in self.distributions)

        def visit(pair: Pair, place: int, log_probs: Tensor) -> None:
            self.distributions.keep(pair, place, log_probs)

        found = self._asked_apart(tuple(pair for pair in dict.fromkeys(pairs) if pair not in kept))
        if kept:
            self._check_unedited(next(iter(kept)))
            found |= dict(zip(kept, target_scores(self.model, list(kept), visit=visit), strict=True))
        self._scores |= found
        return {pair: found[pair] for pair in pairs}

    def scores(self, pairs: Sequence[Pair]) -> dict[Pair, TargetScore]:
        """What was said to these pairs when they were asked last.

        Raises:
            EvaluationError: one was never asked.
        """
        unknown = [pair for pair in pairs if pair not in self._scores]
        if unknown:
            raise EvaluationError(f"{unknown[0]} was not asked of {self.model.name}. Ask it before the edit.")
        return {pair: self._scores[pair] for pair in pairs}

    def texts(self, prompts: Sequence[str]) -> dict[str, str]:
        """Greedy answers to these prompts."""
        asked = tuple(dict.fromkeys(prompts))
        if asked and asked not in self._texts:
            self._texts[asked] = tuple(answers(self.model, asked))
            if self._text_lines is not None:
                self._text_lines.append([{"base": self.fingerprint, "prompts": asked, "texts": self._texts[asked]}])
        return dict(zip(asked, self._texts.get(asked, ()), strict=True))

    def _asked_apart(self, pairs: tuple[Pair, ...]) -> dict[Pair, TargetScore]:
        """Scores of pairs whose distributions are not kept here; asked together or found from then."""
        if pairs and pairs not in self._asks:
            self._check_unedited(pairs[0])
            self._asks[pairs] = tuple(target_scores(self.model, pairs))
            if self._score_lines is not None:
                scores = [[score.nll_sum, score.target, score.predicted] for score in self._asks[pairs]]
                self._score_lines.append([{"base": self.fingerprint, "pairs": pairs, "scores": scores}])
        return dict(zip(pairs, self._asks.get(pairs, ()), strict=True))

    def _check_unedited(self, pair: Pair) -> None:
        if self.model.edits:
            raise EvaluationError(f"{pair} was not asked before {self.model.edits[-1]!r} was made.")

    def _read(self) -> None:
        """What earlier runs asked of these weights, each ask on a line; lines of earlier versions hold a pair each."""
        for line in self._score_lines.read() if self._score_lines else ():
            if line["base"] == self.fingerprint and "pairs" in line:
                scores = [TargetScore(nll, tuple(target), tuple(said)) for nll, target, said in line["scores"]]
                self._asks[tuple((prompt, answer) for prompt, answer in line["pairs"])] = tuple(scores)
        for line in self._text_lines.read() if self._text_lines else ():
            if line["base"] == self.fingerprint and "prompts" in line:
                self._texts[tuple(line["prompts"])] = tuple(line["texts"])
