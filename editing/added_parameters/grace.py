"""GRACE: a codebook beside one layer; near a stored query the layer answers with a trained value.

    a_p    what enters the value matrix where the prompt ends
    y_p <- v_i*   where |a_p - k_i*| <= eps_i*;   elsewhere the model is as it was, exactly
Edits that are attached at the same layer with the same settings share one codebook (`codebook_branch`).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from editing.added_parameters.attaching import attach_and_score, started
from editing.added_parameters.calibration import calibrated_on_bundled_facts
from editing.added_parameters.codebook import Codebook, Placing, Record
from editing.added_parameters.codebook_branch import Journal, Place, Replace, codebook_at
from editing.added_parameters.replaced_value import TrainedValue, Trial, trained_value, trial_of
from editing.edit import Edit
from editing.errors import RequestError
from editing.numbers import check_above_zero, check_not_negative, check_whole
from editing.request import EditRequest
from tracer.model import LanguageModel
from tracer.progress import bar

Init = Literal["cold", "warm"]


@dataclass(frozen=True, kw_only=True)
class GRACE:
    """A codebook at one layer; settings and `apply`.

    Attributes:
        layer: the MLP whose output matrix is asked; upper middle ones tell prompts apart best.
        radius: eps_init, how near to a stored query another one must come. Distances grow with the activations
            of a model: the published 1 takes in nearly every prompt of one and none of another. `suited_to` and
            `calibrate` measure them.
        replace: "last": the prompt's last token alone; "prompt": all of its tokens.
        init: a new value begins "cold", uniform in [0, 1), or "warm", with what the layer gives now.
        rate: Adam's.
        steps: of one value, at most.
        stop_below: loss at which training ends; 0 runs all steps, as published.

    Source: Hartvigsen et al. 2022 (arXiv:2211.11031).
    """

    layer: int
    radius: float = 1.0
    replace: Replace = "last"
    init: Init = "cold"
    rate: float = 1.0
    steps: int = 100
    stop_below: float = 0.01

    def __post_init__(self) -> None:
        for name, kinds in (("replace", Replace), ("init", Init)):
            if getattr(self, name) not in get_args(kinds):
                raise RequestError(f"{name}={getattr(self, name)!r}: choose from {', '.join(get_args(kinds))}.")
        check_whole(self, {"layer": 8}, least=None)  # the model says which there are
        check_whole(self, {"steps": 100})
        check_above_zero(self, {"radius": 1.0, "rate": 1.0})
        check_not_negative(self, {"stop_below": 0.01})

    @classmethod
    def suited_to(cls, model: LanguageModel, layer: int | None = None) -> GRACE:
        """Our choice of layer and radius, the rest as published.

        Args:
            model: to be edited.
            layer: None: at three quarters of the depth, below the last one.

        Returns:
            With the largest radius that spares 95 % of bundled questions which are those of an edit but about
            another subject. It takes a pass over a hundred prompts, once for a model.

        Raises:
            SiteError: the model has no such layer.
            AnatomyError: an encoder-decoder, or MLPs without a value matrix.
        """
        model.check_decoder_only("GRACE")
        at = cls.usual_layer(model) if layer is None else layer
        model.anatomy.value_matrix(at)
        return cls(layer=at, radius=calibrated_on_bundled_facts(model, at).radius())

    @staticmethod
    def usual_layer(model: LanguageModel) -> int:
        """At three quarters of the depth, below the last layer."""
        return max(0, min(3 * model.n_layers // 4, model.n_layers - 2))

    @property
    def place(self) -> Place:
        """The codebook that these settings write to."""
        return Place(self.layer, self.replace, float(self.radius))

    def apply(
        self, model: LanguageModel, requests: Sequence[EditRequest], *, seed: int = 0, progress: bool | None = None
    ) -> Edit:
        """Writes the requests into the codebook, one after the other.

        Args:
            model: no weight of it changes.
            requests: facts to learn; none is no change.
            seed: of cold values.
            progress: whether to show a bar; None: in a terminal or notebook.

        Raises:
            SiteError: the model has no such layer.
            AnatomyError: its MLPs have no value matrix.
            RequestError: two requests contradict each other; a prompt of one token; an answer of several tokens in
                the last layer.
            EditFailedError: a loss became NaN; the model is as it was.
        """
        model.check_decoder_only("GRACE")
        model.anatomy.value_matrix(self.layer)
        with started(model, requests, {"method": "GRACE", **asdict(self), "seed": seed}) as edit:
            if edit.requests:
                self._write(edit, seed, progress)
        return edit

    def _write(self, edit: Edit, seed: int, progress: bool | None) -> None:
        model, generator = edit.model, torch.Generator().manual_seed(seed)
        assert model is not None
        book, records, notes = codebook_at(model, self.place), [], []
        n_before = len(book)
        with bar(len(edit.requests), "training values", show=progress, unit="edit") as steps:
            for request in edit.requests:
                begun = time.perf_counter()
                trial = trial_of(model, self.layer, request, self.replace)
                self._check_reach(model, trial, request)
                record, note = self._record(book, trial, generator)
                book = book.after(record)
                records.append(record)
                notes.append({**note, "keys": len(book), "seconds": time.perf_counter() - begun})
                steps.update()
        advice = 'Use more steps, another layer, or init="warm".'
        attach_and_score(edit, [Journal(self.place, records)], notes, advice=advice)
        added, each = len(book) - n_before, 4 * (records[0].query.numel() + records[0].value.numel() + 1)
        edit.summary = {"keys": len(book), "keys_added": added, "bytes_added": added * each}

    def _record(self, book: Codebook, trial: Trial, generator: torch.Generator) -> tuple[Record, dict[str, Any]]:
        """What the codebook is to learn, and how its value was trained."""
        query = trial.query if trial.query.dtype == torch.float64 else trial.query.float()
        placing = book.placing(query, trial.label)
        start = self._start(book, placing, trial, generator).to(query)
        options = {"rate": self.rate, "steps": self.steps, "stop_below": self.stop_below}
        found: TrainedValue = trained_value(trial, start, **options, each_step=lambda: None)
        record = Record(query.cpu(), found.value.cpu(), trial.label)
        losses = {"loss_before": found.losses[0], "loss": min(found.losses), "steps": len(found.losses) - 1}
        return record, {"rule": placing.rule, "distance": placing.distance, **losses}

    def _start(self, book: Codebook, placing: Placing, trial: Trial, generator: torch.Generator) -> Tensor:
        if placing.rule == "covered":
            assert placing.nearest is not None
            return book.values[placing.nearest]
        if self.init == "warm":
            return trial.present
        return torch.rand(len(trial.present), generator=generator)

    def _check_reach(self, model: LanguageModel, trial: Trial, request: EditRequest) -> None:
        """Above the last layer there is no block by which the value could reach the answer's later tokens."""
        if self.layer == model.n_layers - 1 and len(trial.label) > 1:
            raise RequestError(
                f"{request.new!r} has {len(trial.label)} tokens, and a value in the last layer changes the first one "
                f"alone. Write layer={max(0, model.n_layers - 2)} or lower."
            )
