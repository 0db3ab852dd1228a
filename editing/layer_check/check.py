"""Is the layer that tracing names the layer to edit? An edit swept over the layers, beside their AIE.

Locating says where a fact is read. That it is written best there too is a claim of its own, which
did not hold in GPT-J (Hase et al. 2023, arXiv:2301.04213). Here the same facts are edited at each layer,
and each of CounterFact's scores is set against the average indirect effect:
    correlation(score) = Spearman's, over layers, of AIE[layer] and mean over cases of score[case, layer]
Neighbouring layers are much alike in both, so n layers are fewer than n independent pairs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import tracer
from editing.datasets.benchmarks import counterfact_cases
from editing.datasets.case import CaseScores
from editing.editors import Editor
from editing.errors import RequestError
from editing.evaluation.counterfact import MAGNITUDES, SCORES
from editing.evaluation.examination import Examination, Questions
from editing.evaluation.single import CHUNK, single_edits
from editing.evaluation.summary import harmonic_mean
from editing.locate_then_edit.covariance import second_moments
from editing.locate_then_edit.rome import ROME
from tracer.effect import AverageTrace, Estimate
from tracer.fact import ROLES
from tracer.first_order.screen import rank_correlation
from tracer.model import LanguageModel
from tracer.place import Place
from tracer.progress import bar
from tracer.storage import plain, write_json

Record = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class LayerCheck:
    """Single edits at each of some layers.

    Attributes:
        place: what tracing located, with the ranking of all layers.
        layers: where edits were made, ascending.
        effects: AIE at each of them, positive towards the clean answer.
        window: layers restored together in the trace.
        cases: the scores of every fact, by layer, in the order of the records.
    """

    place: Place
    layers: tuple[int, ...]
    effects: tuple[Estimate, ...]
    window: int
    cases: Mapping[int, Sequence[CaseScores]]

    @property
    def scores(self) -> list[str]:
        """ES, PS, NS and their magnitudes, as far as the records have prompts for them."""
        found = {name for case in self.cases[self.layers[0]] for name in case.after}
        return [name for name in (*SCORES, *MAGNITUDES) if name in found]

    def estimates(self, score: str) -> list[Estimate]:
        """A score after the edit at each layer, mean over the cases that have it."""
        return [Estimate.of(_column(self.cases[layer], "after", score)) for layer in self.layers]

    def before(self, score: str) -> Estimate:
        """A score of the unedited model."""
        return Estimate.of(_column(self.cases[self.layers[0]], "before", score))

    @property
    def harmonic(self) -> list[float]:
        """S at each layer, the harmonic mean of ES, PS and NS; NaN where one is missing."""
        if not set(SCORES) <= set(self.scores):
            return [float("nan")] * len(self.layers)
        columns = zip(*(self.estimates(name) for name in SCORES), strict=True)
        return [harmonic_mean([estimate.mean for estimate in column]) for column in columns]

    @property
    def correlations(self) -> dict[str, float]:
        """Of AIE with each score over the layers; NaN for a score that is the same at all."""
        frame = self.to_frame().dropna(axis="columns", how="all")
        names = [name for name in (*self.scores, "S") if name in frame]
        return {name: rank_correlation(frame["effect"].to_numpy(), frame[name].to_numpy()) for name in names}

    def to_frame(self) -> pd.DataFrame:
        """One row a layer: layer, effect, its standard error, every score and S, all in [0, 1] or [-1, 1]."""
        columns = {name: [estimate.mean for estimate in self.estimates(name)] for name in self.scores}
        effect = [estimate.mean for estimate in self.effects]
        error = [estimate.standard_error for estimate in self.effects]
        return pd.DataFrame(
            {"layer": self.layers, "effect": effect, "standard_error": error, **columns, "S": self.harmonic}
        )

    def record(self) -> dict[str, Any]:
        """Everything but the single cases, as JSON values."""
        return {
            "located": self.place.record(),
            "window": self.window,
            "cases": len(self.cases[self.layers[0]]),
            "layers": self.to_frame().to_dict("records"),
            "before": {name: self.before(name).mean for name in self.scores},
            "rank_correlation": self.correlations,
            "n_layers": len(self.layers),
        }

    def __str__(self) -> str:
        n = len(self.cases[self.layers[0]])
        found = {name: value for name, value in self.correlations.items() if not np.isnan(value)}
        flat = [name for name in self.correlations if name not in found]
        said = ", ".join(f"{name} {value:+.2f}" for name, value in found.items()) or "none"
        same = f" The same at every layer: {', '.join(flat)}." if flat else ""
        return f"Rank correlation with AIE over {len(self.layers)} layers, {n} facts: {said}.{same}"


def check_by_editing(
    model: LanguageModel,
    average: AverageTrace,
    records: Sequence[Record],
    *,
    kind: str | None = None,
    role: str = "last subject token",
    layers: Sequence[int] | None = None,
    editor: Callable[[int], Editor] | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: bool | None = None,
) -> LayerCheck:
    """Edits each fact at each layer, scores it, undoes it, and sets the scores beside the AIE of the layers.

    Args:
        model: is the same again afterwards.
        average: of this model; what `tracer.locate` would be asked.
        records: facts to edit, as CounterFact has them; `editing.evaluation.bundled_records` makes some.
        kind: the map whose AIE is taken, as in `tracer.locate`.
        role: of the token, as there.
        layers: at which to edit; default all.
        editor: from a layer to an editor; default `ROME(layer=...)`.
        seed: of the edits.
        folder: a file for each layer and fact is kept there; what is there already is not edited again.
        progress: show a bar; None: in a terminal or notebook.

    Raises:
        SiteError: the average has no such map, or the model no such layer.
        RequestError: no records, fewer than two layers, or an average of other weights.
        EvaluationError: a record that is none of CounterFact.
    """
    counterfact_cases(records)  # one that is none is refused before anything runs
    place = tracer.locate(average, kind=kind, role=role)
    chosen = tuple(sorted(set(range(model.n_layers) if layers is None else layers)))
    _check(model, average, records, chosen)
    make = editor or (lambda layer: ROME(layer=layer))
    editors = {layer: make(layer) for layer in chosen}
    _share_statistics(model, editors, seed, progress)
    sweep = _Sweep(Examination(model, Questions(free=False, kl=False)), seed, None if folder is None else Path(folder))
    with bar(len(chosen) * len(records), "editing layers", show=progress, unit="edit") as steps:
        cases = {layer: sweep.layer(editors[layer], layer, records, steps) for layer in chosen}
    values = average.settings.sense * average.effects[place.kind][:, ROLES.index(role)]
    effects = tuple(Estimate.of(values[:, layer]) for layer in chosen)
    return LayerCheck(place, chosen, effects, average.settings.window, cases)


def _check(model: LanguageModel, average: AverageTrace, records: Sequence[Record], layers: Sequence[int]) -> None:
    for layer in layers:
        model.anatomy.check_layer(layer)
    if len(layers) < 2 or not records:
        raise RequestError(
            f"{len(layers)} layers and {len(records)} facts compare nothing. Give layers=range(0, "
            f"{model.n_layers}, 2) and records=bundled_records(model, 6), say."
        )
    if average.settings.fingerprint != model.fingerprint():
        raise RequestError(
            f"The average is of other weights ({average.settings.model}) than this model. Make it again with "
            f"tracer.average(model, facts)."
        )


def _share_statistics(model: LanguageModel, editors: Mapping[int, Editor], seed: int, progress: bool | None) -> None:
    """Key statistics of all layers in one pass over the text, where they are wanted alike."""
    romes = {layer: one for layer, one in editors.items() if isinstance(one, ROME) and not one.identity}
    wanted = {layer: (one.corpus, one.tokens, one.skip_first) for layer, one in romes.items()}
    for corpus, tokens, skip_first in set(wanted.values()):
        alike = [layer for layer, settings in wanted.items() if settings == (corpus, tokens, skip_first)]
        options: dict[str, Any] = {"corpus": corpus, "tokens": tokens, "skip_first": skip_first}
        second_moments(model, alike, **options, seed=seed, progress=progress)


@dataclass(frozen=True, eq=False)
class _Sweep:
    """Single edits at one layer after the other, with their files; the unedited model is asked once."""

    examination: Examination
    seed: int
    folder: Path | None

    def layer(self, editor: Editor, layer: int, records: Sequence[Record], steps: Any) -> list[CaseScores]:
        """The scores of every record, computed together as far as single edits are."""
        found: list[CaseScores] = []
        steps.set_postfix_str(f"layer {layer}")
        for begin in range(0, len(records), CHUNK):
            chunk = records[begin : begin + CHUNK]
            found += self._chunk(editor, chunk, [self._path(editor, layer, chunk, one) for one in chunk], steps)
        return found

    def _chunk(
        self, editor: Editor, records: Sequence[Record], paths: Sequence[Path | None], steps: Any
    ) -> list[CaseScores]:
        """From their files where all are there, or edited now."""
        kept = [path for path in paths if path is not None and path.is_file()]
        if len(kept) == len(records):
            steps.update(len(kept))
            return [CaseScores(**json.loads(path.read_text(encoding="utf-8"))) for path in kept]
        cases, found = counterfact_cases(records), []
        for case, path in zip(
            single_edits(self.examination, editor, cases, seed=self.seed, progress=False), paths, strict=True
        ):
            if path is not None:
                write_json(path, {name: getattr(case, name) for name in ("case_id", "before", "after", "diagnostics")})
            found.append(case)
            steps.update()
        return found

    def _path(self, editor: Editor, layer: int, chunk: Sequence[Record], record: Record) -> Path | None:
        """Named by the model, the record, those computed with it, and everything else that a score depends on."""
        if self.folder is None:
            return None
        about = [self.examination.model.fingerprint(), record, chunk, repr(editor), self.seed]
        digest = hashlib.sha256(json.dumps(about, default=plain, sort_keys=True).encode()).hexdigest()
        return self.folder / f"layer-{layer}" / f"{digest[:24]}.json"


def _column(cases: Sequence[CaseScores], when: str, score: str) -> np.ndarray:
    """A score of every case, NaN where the record has no such prompts."""
    return np.array([getattr(case, when).get(score, np.nan) for case in cases])
