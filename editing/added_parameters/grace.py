"""GRACE: a codebook beside one layer; near a stored query the layer answers with a trained value.

    a_p    what enters the value matrix where the prompt ends
    y_p <- v_i*   where |a_p - k_i*| <= eps_i*;   elsewhere the model is as it was, exactly
Edits that are attached at the same layer with the same settings share one codebook (`codebook_branch`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from editing.added_parameters.attaching import attach_and_score
from editing.added_parameters.calibration import calibrated_on_bundled_facts
from editing.added_parameters.codebook import Codebook, Placing, Record
from editing.added_parameters.codebook_branch import CodebookPlace, Journal, Replace, codebook_at
from editing.added_parameters.replaced_value import Trials, trained_values, trials_of
from editing.added_parameters.side_by_side import Company, SideBySide, in_groups
from editing.edit import Edit
from editing.errors import RequestError
from editing.request import EditRequest, check_decoder_only
from editing.setting_checks import check_above_zero, check_not_negative, check_whole
from editing.stopwatch import now
from tracer.model import LanguageModel

Init = Literal["cold", "warm"]


@dataclass(frozen=True, kw_only=True)
class GRACE(SideBySide["_Learnt"]):
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

    method = "GRACE"

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
        check_decoder_only(model, "GRACE")
        at = cls.usual_layer(model) if layer is None else layer
        model.anatomy.value_matrix(at)
        return cls(layer=at, radius=calibrated_on_bundled_facts(model, at).radius())

    @staticmethod
    def usual_layer(model: LanguageModel) -> int:
        """At three quarters of the depth, below the last layer."""
        return max(0, min(3 * model.n_layers // 4, model.n_layers - 2))

    @property
    def place(self) -> CodebookPlace:
        """The codebook that these settings write to."""
        return CodebookPlace(self.layer, self.replace, float(self.radius))

    def apply(
        self, model: LanguageModel, requests: Sequence[EditRequest], *, seed: int = 0, progress: bool | None = None
    ) -> Edit:
        """Writes the requests into the codebook, one after the other.

        Args:
            model: no weight of it changes.
            requests: facts to learn; none is no change.
            seed: of the first request's cold value; the next one's is one more.
            progress: whether to show a bar; None: in a terminal or notebook.

        Raises:
            SiteError: the model has no such layer.
            AnatomyError: its MLPs have no value matrix.
            RequestError: two requests contradict each other; a prompt of one token; an answer of several tokens in
                the last layer.
            EditFailedError: a loss became NaN; the model is as it was.
        """
        return self._together(model, requests, seed, progress)

    def _check_place(self, model: LanguageModel) -> None:
        check_decoder_only(model, self.method)
        model.anatomy.value_matrix(self.layer)

    def _learnt(
        self,
        model: LanguageModel,
        requests: Sequence[EditRequest],
        seed: int,
        progress: bool | None,
        company: Company,
    ) -> list[_Learnt]:
        """What the codebook is to learn of each request, once it has learnt those before."""
        book, known = codebook_at(model, self.place), 0
        seeds = range(seed, seed + len(requests)) if company == "together" else [seed] * len(requests)

        def learn(group: Sequence[tuple[EditRequest, int]], found: Sequence[_Learnt]) -> list[_Learnt]:
            nonlocal book, known
            for one in () if company == "alone" else found[known:]:
                book = book.after(one.record)
            known = len(found)
            return self._side_by_side(model, book, group, alone=company == "alone")

        pairs = list(zip(requests, seeds, strict=True))
        return in_groups(pairs, learn, title="training values", progress=progress)

    def _side_by_side(
        self, model: LanguageModel, book: Codebook, group: Sequence[tuple[EditRequest, int]], *, alone: bool
    ) -> list[_Learnt]:
        """Learns the first requests, up to one whose value begins with that of another one here."""
        begun = now(model)
        requests = [request for request, _ in group]
        trials = trials_of(model, self.layer, requests, self.replace)
        self._check_reach(model, trials, requests)
        placings, starts = self._placed(book, trials, [seed for _, seed in group], alone=alone)
        if len(placings) < len(requests):
            trials = trials_of(model, self.layer, requests[: len(placings)], self.replace)
        options = {"rate": self.rate, "steps": self.steps, "stop_below": self.stop_below}
        values = trained_values(trials, torch.stack(starts), **options)
        share = (now(model) - begun) / len(values)
        parts = zip(trials.queries.cpu(), trials.labels, values, placings, strict=True)
        return [
            _Learnt(Record(query, value.value.cpu(), label), placing, value.losses, share)
            for query, label, value, placing in parts
        ]

    def _placed(
        self, book: Codebook, trials: Trials, seeds: Sequence[int], *, alone: bool
    ) -> tuple[list[Placing], list[Tensor]]:
        """Where the requests fall and what their values begin with, up to one that begins with another's here.

        The rules go by queries and labels alone, so that a value to be trained can stand in for the trained one.
        """
        placings: list[Placing] = []
        starts: list[Tensor] = []
        fresh: set[int | None] = set()  # keys whose values are being trained
        after = book
        for query, label, present, seed in zip(trials.queries, trials.labels, trials.present, seeds, strict=True):
            placing = after.placing(query, label)
            if placing.rule == "covered" and placing.nearest in fresh:
                break
            placings.append(placing)
            starts.append(self._start(book, placing, present, seed))
            if not alone:
                after = after.after(Record(query, starts[-1], label))
                fresh.add(placing.nearest if placing.rule in ("covered", "overwritten") else len(after) - 1)
        return placings, starts

    def _start(self, book: Codebook, placing: Placing, present: Tensor, seed: int) -> Tensor:
        if placing.rule == "covered":
            assert placing.nearest is not None
            return book.values[placing.nearest].to(present)
        if self.init == "warm":
            return present
        return torch.rand(len(present), generator=torch.Generator().manual_seed(seed)).to(present)

    def _finish(self, edit: Edit, learnt: Sequence[_Learnt]) -> None:
        model, records = edit.applied_to, [one.record for one in learnt]
        n_before = len(codebook_at(model, self.place))
        advice = 'Use more steps, another layer, or init="warm".'
        attach_and_score(edit, [Journal(self.place, records)], [one.note for one in learnt], advice=advice)
        n_after, each = len(codebook_at(model, self.place)), records[0].query.numel() + records[0].value.numel() + 1
        edit.summary = {
            "keys": n_after,
            "keys_added": n_after - n_before,
            "bytes_added": 4 * each * (n_after - n_before),
        }

    def _check_reach(self, model: LanguageModel, trials: Trials, requests: Sequence[EditRequest]) -> None:
        """Above the last layer there is no block by which a value could reach the answer's later tokens."""
        for request, label in zip(requests, trials.labels, strict=True):
            if self.layer == model.n_layers - 1 and len(label) > 1:
                raise RequestError(
                    f"{request.new!r} has {len(label)} tokens, and a value in the last layer changes the first one "
                    f"alone. Write layer={max(0, model.n_layers - 2)} or lower."
                )


@dataclass(frozen=True, eq=False)
class _Learnt:
    """What a codebook is to learn of one request, where that fell in it, and the losses and seconds of training."""

    record: Record
    placing: Placing
    losses: tuple[float, ...]
    seconds: float

    @property
    def note(self) -> dict[str, Any]:
        """For the edit's diagnostics."""
        losses = {"loss_before": self.losses[0], "loss": min(self.losses), "steps": len(self.losses) - 1}
        return {"rule": self.placing.rule, "distance": self.placing.distance, **losses, "seconds": self.seconds}
