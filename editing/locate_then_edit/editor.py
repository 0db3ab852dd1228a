"""What all locate-then-edit methods share: settings, checks, and the frame around a write.

    values    found for all requests on the model as it is (`values`)
    insert    each method's own: keys, statistics, a change of W
A subclass says where values are wanted and how they are inserted.
"""

from __future__ import annotations

import dataclasses
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self, get_args

from editing.change import writable
from editing.edit import Edit
from editing.errors import CovarianceError, RequestError
from editing.locate_then_edit.complaints import warn_of
from editing.locate_then_edit.contexts import checked_plan, contexts
from editing.locate_then_edit.covariance import RIDGE, SecondMoment, second_moments
from editing.locate_then_edit.kept_values import Wanted, find_values
from editing.locate_then_edit.norms import has_norm
from editing.locate_then_edit.presets import PRESETS, known_settings, short_name
from editing.locate_then_edit.suffix import KLPosition, Part
from editing.locate_then_edit.values import Search, Value
from editing.request import EditRequest, check_decoder_only, check_requests, listed
from editing.setting_checks import check_above_zero, check_flag, check_not_negative, check_whole, checked_seed
from editing.stopwatch import add_seconds
from editing.writing import editable, writing
from tracer.model import LanguageModel
from tracer.progress import Count, bar, uncounted

NORMED_RATE = 0.35  # of the root mean square of z0, where a norm follows W
NORMED_CLAMP = 1.0


@dataclass(frozen=True, kw_only=True)
class LocateThenEdit(ABC):
    """Settings of the value optimisation and of the key statistics; `apply` and `each`.

    Attributes:
        steps, rate, decay, kl, clamp, contexts_a_step, kl_position: of the value optimisation (`Search`). Rate and
            clamp default to the published ones; where a norm follows W, as no published model has it, to 0.35 of
            z0's size a step and a clamp of 1, which lets a value turn by 45 degrees.
        context_plan: random prefixes, (how many, tokens each); () for the bare prompt alone.
        corpus: text file for the key statistics; None: text that the model writes itself.
        tokens: of the corpus; None: 100,000 of a file, 10 * d_mlp of the model's own text.
        skip_first: leave out each text's first token, whose keys are outliers in Llama-like models.
        ridge: added to the key statistics, relative to their mean eigenvalue.
        values_folder: where values are kept for other editors, batches and runs; None: nowhere.
    """

    steps: int = 20
    rate: float | None = None
    decay: float = 0.5
    kl: float = 0.0625
    clamp: float | None = None
    contexts_a_step: int | None = None
    kl_position: KLPosition = "lookup"
    context_plan: tuple[tuple[int, int], ...] = ()
    corpus: str | Path | None = None
    tokens: int | None = None
    skip_first: bool = False
    ridge: float = RIDGE
    values_folder: str | Path | None = field(default=None, metadata={"local": True})

    published_rate: ClassVar[float] = 0.5
    published_clamp: ClassVar[float] = 4.0
    one_by_one: ClassVar[bool] = False
    openings: ClassVar[tuple[str, ...] | None] = None

    def __post_init__(self) -> None:
        check_whole(self, {"steps": 20}, least=2)
        check_whole(self, {"tokens": 100_000}, least=2, or_none=True)
        check_whole(self, {"contexts_a_step": 2}, or_none=True)
        check_above_zero(self, {"rate": self.published_rate, "clamp": self.published_clamp}, or_none=True)
        check_not_negative(self, {"decay": 0.5, "kl": 0.0625, "ridge": RIDGE})
        check_flag(self, "skip_first")
        object.__setattr__(self, "context_plan", checked_plan(self.context_plan))
        if self.kl_position not in get_args(KLPosition):
            raise RequestError(f'kl_position={self.kl_position!r}: write "lookup" or "last".')
        for name in ("corpus", "values_folder"):
            if not isinstance(getattr(self, name), str | os.PathLike | None):
                raise RequestError(f"{name}={getattr(self, name)!r} is no path. Write {name}='...', or None.")
        if self.corpus is not None and not Path(self.corpus).is_file():
            raise CovarianceError(f"There is no corpus file {self.corpus}. Give a text file, or None.")

    @classmethod
    def preset(cls, model: str, **changes: Any) -> Self:
        """The published settings for a model, e.g. "gpt2-xl", with changes.

        Raises:
            RequestError: none were published, or there is no such setting.
        """
        known, name = PRESETS[cls.__name__], short_name(model)
        if name not in known:
            raise RequestError(f"No {cls.__name__} settings were published for {model!r}; for {', '.join(known)}.")
        own = {"rate": cls.published_rate, "clamp": cls.published_clamp, **known[name]}
        return cls(**{**own, **known_settings(cls, changes)})

    def apply(
        self, model: LanguageModel, requests: Sequence[EditRequest], *, seed: int = 0, progress: bool | None = None
    ) -> Edit:
        """Writes the requests into `model`.

        Args:
            model: edited in place; `Edit.undo` puts it back.
            requests: facts to write; none is no change.
            seed: of the random prefixes, and of the text the model writes for its key statistics.
            progress: show bars; None: in a terminal or notebook.

        Raises:
            SiteError: the model has no such layer.
            BaseModelError: a weight is quantised or offloaded.
            RequestError: two requests for one prompt and subject.
            EditFailedError: the optimisation failed; the model is as it was.
        """
        requests, seed = listed(requests), checked_seed(seed)
        self.check(model, requests)
        groups = [[request] for request in requests] if self.one_by_one else [requests] if requests else []
        edit = self._begun(model, requests, seed, model.fingerprint())
        total = len(requests) * self.steps
        with writing(edit, model), bar(total, "optimising values", show=progress, unit="step") as steps:
            for group in groups:
                self._insert(edit, group, self.values(model, group, seed, steps.update), seed, progress)
        warn_of(edit)
        return edit

    def each(
        self, model: LanguageModel, requests: Sequence[EditRequest], *, seed: int = 0, progress: bool | None = None
    ) -> list[Edit]:
        """An edit for each request alone, none of them applied; their values are optimised together.

        Takes and raises what `apply` does; `edit.apply(model)` writes one.
        """
        requests, seed = listed(requests), checked_seed(seed)
        for request in requests:  # they may contradict each other
            self.check(model, [request])
        found = []
        with editable(model), bar(len(requests) * self.steps, "optimising values", show=progress, unit="step") as steps:
            values, base = self.values(model, requests, seed, steps.update) if requests else [], model.fingerprint()
            for request, value in zip(requests, values, strict=True):
                edit = self._begun(model, [request], seed, base)
                edit.start(model)
                try:
                    self._insert(edit, [request], [value], seed, progress)
                finally:
                    edit.undo()
                found.append(edit)
        warn_of(*found)
        return found

    @property
    def method(self) -> str:
        """What an edit's record says made it."""
        return type(self).__name__

    def values(
        self, model: LanguageModel, requests: Sequence[EditRequest], seed: int, count: Count = uncounted
    ) -> list[Value]:
        """The value of each request on the model as it is; `count` is told of the steps taken."""
        layer, parts = self.target(model)
        wanted = Wanted(layer, parts, self.search(model), self.prefixes(model, seed))
        return find_values(model, requests, wanted, folder=self.values_folder, count=count)

    def search(self, model: LanguageModel) -> Search:
        """Settings of the value optimisation."""
        _, parts = self.target(model)
        free = has_norm(model) and parts[0] == "mlp"  # the scale of what is optimised
        rate = self.rate or (NORMED_RATE if free else self.published_rate)
        clamp = self.clamp or (min(NORMED_CLAMP, self.published_clamp) if free else self.published_clamp)
        return Search(
            steps=self.steps,
            rate=rate,
            relative=free and not self.rate,
            clamp=clamp,
            decay=self.decay,
            kl=self.kl,
            contexts_a_step=self.contexts_a_step,
            kl_position=self.kl_position,
        )

    def prefixes(self, model: LanguageModel, seed: int) -> tuple[str, ...]:
        """The contexts of every request, the empty one first."""
        options = {} if self.openings is None else {"openings": self.openings}
        return contexts(model, seed=seed, plan=self.context_plan, **options)

    def statistics(self, model: LanguageModel, seed: int, progress: bool | None) -> dict[int, SecondMoment]:
        """C of every layer that is written."""
        options: dict[str, Any] = {"corpus": self.corpus, "tokens": self.tokens, "ridge": self.ridge}
        options["skip_first"] = self.skip_first
        return second_moments(model, self.written(), seed=seed, progress=progress, **options)

    def check(self, model: LanguageModel, requests: Sequence[EditRequest]) -> None:
        """Raises the named error of whatever `apply` cannot write, before anything runs."""
        check_requests(model, requests)
        check_decoder_only(model, type(self).__name__)
        for layer in self.written():
            writable(model, model.anatomy.value_weight_name(layer))

    @abstractmethod
    def written(self) -> tuple[int, ...]:
        """The layers that are changed, rising."""

    @abstractmethod
    def target(self, model: LanguageModel) -> tuple[int, tuple[Part, ...]]:
        """The layer, and the places in it, that values are optimised for."""

    @abstractmethod
    def insert(
        self, edit: Edit, requests: Sequence[EditRequest], values: Sequence[Value], *, seed: int, progress: bool | None
    ) -> None:
        """Writes requests into `edit.model`; changes, records and summary go to `edit`."""

    def _insert(
        self, edit: Edit, requests: Sequence[EditRequest], values: Sequence[Value], seed: int, progress: bool | None
    ) -> None:
        add_seconds(edit, "values", sum(value.seconds for value in values if not value.kept))
        self.insert(edit, requests, values, seed=seed, progress=progress)

    def _begun(self, model: LanguageModel, requests: Sequence[EditRequest], seed: int, base: str) -> Edit:
        corpus = None if self.corpus is None else Path(self.corpus).name
        search = self.search(model)
        found = {"rate": search.rate, "relative": search.relative, "clamp": search.clamp}
        own = {one.name: getattr(self, one.name) for one in dataclasses.fields(self) if not one.metadata.get("local")}
        settings = {**own, **found, "corpus": corpus, "seed": seed}
        return Edit(tuple(requests), (), {"method": self.method, **settings}, base)


def value_record(request: EditRequest, value: Value, written: float) -> dict[str, Any]:
    """What is known of one request: probabilities of the new answer, the loss' parts, steps."""
    return {
        "subject": request.subject,
        "new": request.new,
        "probability_before": value.probability[0],
        "probability_reached": value.probability[1],
        "probability_written": written,
        **value.loss,
        "steps": value.steps,
        "clamped": value.clamped,
        "value_seconds": value.seconds,
        "value_kept": value.kept,
    }
