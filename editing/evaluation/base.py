"""What the unedited model says, asked once: kept in memory and, given a folder, on disk for every later run."""

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


class Base:
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
        self._texts: dict[str, str] = {}
        self._score_lines = None if folder is None else Lines(Path(folder) / "base_scores.jsonl")
        self._text_lines = None if folder is None else Lines(Path(folder) / "base_texts.jsonl")
        self._read()

    def scores(self, pairs: Sequence[Pair], *, keep: Iterable[Pair] = ()) -> dict[Pair, TargetScore]:
        """Scores of these pairs; the distributions of those in `keep` are held for KL.

        Raises:
            EvaluationError: something is not known yet and the model is edited.
        """
        kept = {pair for pair in keep if pair not in self.distributions} if self.distributions.room > 0 else set()
        missing = [pair for pair in dict.fromkeys(pairs) if pair not in self._scores or pair in kept]
        if missing and self.model.edits:
            raise EvaluationError(f"{missing[0]} was not asked before {self.model.edits[-1]!r} was made.")

        def visit(pair: Pair, place: int, log_probs: Tensor) -> None:
            if pair in kept:
                self.distributions.keep(pair, place, log_probs)

        found: dict[Pair, TargetScore] = {}
        # Apart, so that what is kept was read beside the same pairs whatever is known already: then bits agree.
        for some, look in (([p for p in missing if p not in kept], None), ([p for p in missing if p in kept], visit)):
            found |= dict(zip(some, target_scores(self.model, some, visit=look), strict=True)) if some else {}
        fresh = {pair: found[pair] for pair in missing if pair not in self._scores}
        self._scores |= fresh
        if self._score_lines is not None:
            self._score_lines.append(
                {"base": self.fingerprint, "prompt": prompt, "answer": answer, **vars(score)}
                for (prompt, answer), score in fresh.items()
            )
        return {pair: self._scores[pair] for pair in pairs}

    def texts(self, prompts: Sequence[str]) -> dict[str, str]:
        """Greedy answers to these prompts."""
        missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._texts]
        fresh = dict(zip(missing, answers(self.model, missing), strict=True))
        self._texts |= fresh
        if self._text_lines is not None:
            self._text_lines.append({"base": self.fingerprint, "prompt": p, "text": text} for p, text in fresh.items())
        return {prompt: self._texts[prompt] for prompt in prompts}

    def _read(self) -> None:
        """What earlier runs asked of these weights."""
        for line in self._score_lines.read() if self._score_lines else ():
            if line["base"] == self.fingerprint:
                score = TargetScore(line["nll_sum"], tuple(line["target"]), tuple(line["predicted"]))
                self._scores[line["prompt"], line["answer"]] = score
        for line in self._text_lines.read() if self._text_lines else ():
            if line["base"] == self.fingerprint:
                self._texts[line["prompt"]] = line["text"]
