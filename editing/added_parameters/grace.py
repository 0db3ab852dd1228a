"""GRACE: a codebook beside one layer; near a stored query the layer answers with a trained value.

    a_p    what enters the value matrix where the prompt ends
    y_p <- v_i*   where |a_p - k_i*| <= eps_i*;   elsewhere the model is as it was, exactly
Edits that are attached at the same layer with the same settings share one codebook (`codebook_branch`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from editing.added_parameters.attaching import attach_and_score
from editing.added_parameters.calibration import calibrated_on_bundled_facts
from editing.added_parameters.codebook import Placing, Record
from editing.added_parameters.codebook_branch import CodebookPlace, Journal, Replace, codebook_at
from editing.added_parameters.replaced_value import encodings_of, query_of, trained_values, trials_of
from editing.added_parameters.side_by_side import AT_ONCE, Company, SideBySide
from editing.edit import Edit
from editing.errors import RequestError
from editing.request import EditRequest, check_decoder_only
from editing.setting_checks import check_above_zero, check_not_negative, check_whole
from editing.stopwatch import now
from tracer.model import LanguageModel
from tracer.model.tokens import TargetEncoding
from tracer.progress import bar

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
        """What the codebook is to learn of each request, once it has learnt those before.

        The rules go by queries and labels alone, so all requests are placed first. Then values are trained side by
        side; one that begins with another one's here waits for it.
        """
        found: dict[_Task, _Learnt] = {}
        with bar(len(requests), "training values", show=progress, unit="edit") as steps:
            begun = now(model)
            tasks = self._tasks(model, requests, seed, company)
            share = (now(model) - begun) / max(1, len(tasks))
            while len(found) < len(tasks):
                ready = [task for task in tasks if task not in found and (task.before is None or task.before in found)]
                some = sorted(ready, key=lambda task: task.n_tokens)[:AT_ONCE]  # alike: little padding
                found |= zip(some, self._trained(model, some, found, share), strict=True)
                steps.update(len(some))
        return [found[task] for task in tasks]

    def _tasks(self, model: LanguageModel, requests: Sequence[EditRequest], seed: int, company: Company) -> list[_Task]:
        """Where each request falls, in a codebook whose values are yet to be trained."""
        book, tasks = codebook_at(model, self.place), []
        writers: dict[int, _Task] = {}  # of the values that are trained here, by key
        encodings = encodings_of(model, requests)
        self._check_reach(model, requests, encodings)
        for number, (request, encoding) in enumerate(zip(requests, encodings, strict=True)):
            query, label = query_of(model, self.layer, encoding), encoding.target_ids
            placing = book.placing(query, label)
            key = book.written(placing)
            before = writers.get(key) if placing.rule == "covered" else None
            start = book.values[key] if placing.rule == "covered" and before is None else None
            own = seed + number if company == "together" else seed
            tasks.append(_Task(request, len(encoding.ids), query, label, placing, own, before, start))
            if company != "alone":
                unknown = query.new_zeros(model.d_model)  # the value, of which no rule asks
                book = book.after(Record(query, unknown, label))
                writers[key] = tasks[-1]
        return tasks

    def _trained(
        self, model: LanguageModel, tasks: Sequence[_Task], found: Mapping[_Task, _Learnt], share: float
    ) -> list[_Learnt]:
        """Trains the values of some requests side by side; `share`: seconds that each of them took before."""
        begun, queries = now(model), torch.stack([task.query for task in tasks])
        trials = trials_of(model, self.layer, [task.request for task in tasks], self.replace, queries=queries)
        starts = []
        for task, present in zip(tasks, trials.present, strict=True):
            start = found[task.before].record.value if task.before else task.start
            starts.append(self._fresh(present, task.seed) if start is None else start.to(present))
        options = {"rate": self.rate, "steps": self.steps, "stop_below": self.stop_below}
        values = trained_values(trials, torch.stack(starts), **options)
        share += (now(model) - begun) / len(values)
        return [
            _Learnt(Record(task.query.cpu(), one.value.cpu(), task.label), task.placing, one.losses, share)
            for task, one in zip(tasks, values, strict=True)
        ]

    def _fresh(self, present: Tensor, seed: int) -> Tensor:
        """What a new value begins with."""
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

    def _check_reach(
        self, model: LanguageModel, requests: Sequence[EditRequest], encodings: Sequence[TargetEncoding]
    ) -> None:
        """Above the last layer there is no block by which a value could reach the answer's later tokens."""
        for request, encoding in zip(requests, encodings, strict=True):
            n_tokens = len(encoding.target_ids)
            if self.layer == model.n_layers - 1 and n_tokens > 1:
                raise RequestError(
                    f"{request.new!r} has {n_tokens} tokens, and a value in the last layer changes the first one "
                    f"alone. Write layer={max(0, model.n_layers - 2)} or lower."
                )


@dataclass(frozen=True, eq=False)
class _Task:
    """A request, where it falls, and what its value begins with.

    Attributes:
        request: what is to be said.
        n_tokens: of its prompt and answer.
        query: what enters the matrix at the prompt's end, [n_in].
        label: token ids of the answer.
        placing: in the codebook after the requests before.
        seed: of a value that begins anew.
        before: whose value this one begins with, if that is trained here too.
        start: the codebook's value that this one begins with, if one was there before, [n_out].
    """

    request: EditRequest
    n_tokens: int
    query: Tensor
    label: tuple[int, ...]
    placing: Placing
    seed: int
    before: _Task | None
    start: Tensor | None


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
