"""The whole way in one call: trace -> locate -> edit -> trace again, with what changed beside what should not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

import tracer
from editing.datasets.bundled import MOST_NEIGHBOURS, MOST_PARAPHRASES
from editing.edit import Edit
from editing.editors import Editor
from editing.locate_then_edit.rome import ROME
from editing.request import EditRequest, check_requests
from editing.scoring.generation import complete
from editing.scoring.scores import target_scores
from tracer.answer import predicted_id
from tracer.corrupt import measured_corruption
from tracer.effect import AverageTrace, TraceResult
from tracer.facts import bundled, paraphrases, relation_of, spread_over_relations
from tracer.model import LanguageModel
from tracer.model.inputs import prompt_encoding
from tracer.model.tokens import visible
from tracer.place import Place
from tracer.progress import bar
from tracer.storage import write_json
from tracer.studies.locating import FACTS_TO_LOCATE

PromptKind = Literal["edited", "paraphrase", "neighbour"]


@dataclass(frozen=True)
class Shown:
    """One prompt before and after the edit. Probabilities are of whole answers, exp(-NLL a token).

    Attributes:
        kind: the edited prompt, another way to say it, or a prompt that must not change.
        new, old: the answers scored: the request's, and the one the prompt had before.
        text_before, text_after: greedy continuations.
    """

    kind: PromptKind
    prompt: str
    new: str
    old: str
    new_before: float
    new_after: float
    old_before: float
    old_after: float
    text_before: str
    text_after: str


@dataclass(frozen=True, eq=False)
class Report:
    """What `locate_then_edit` found and did. The edit is still applied; `report.edit.undo()` takes it back.

    Attributes:
        before, after: traces of the edited prompt, for the old and for the new answer.
        average, place: what the layer was located from; None where a layer was given.
        shown: prompts before and after.
    """

    request: EditRequest
    before: TraceResult
    after: TraceResult
    average: AverageTrace | None
    place: Place | None
    edit: Edit
    shown: tuple[Shown, ...]

    @property
    def how(self) -> str:
        """The method and the layers it was told, in words."""
        told = self.edit.editor
        layers = told.get("layers") or [layer for layer in (told.get("layer"),) if layer is not None]
        at = f" at layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}" if layers else ""
        return f"{self.edit.method}{at}"

    def to_frame(self) -> pd.DataFrame:
        """One row a prompt: `Shown`'s fields."""
        return pd.DataFrame([dataclasses.asdict(row) for row in self.shown])

    def record(self) -> dict[str, Any]:
        """Everything but the maps, as JSON values."""
        return {
            "request": dataclasses.asdict(self.request),
            "settings": dataclasses.asdict(self.before.settings),
            "located": None if self.place is None else self.place.record(),
            "editor": dict(self.edit.editor),
            "diagnostics": [dict(record) for record in self.edit.diagnostics],
            "traces": {
                name: {"answer": trace.answer, "clean": trace.clean, "corrupted": trace.corrupted}
                for name, trace in (("before", self.before), ("after", self.after))
            },
            "prompts": [dataclasses.asdict(row) for row in self.shown],
        }

    def save(self, folder: str | Path) -> list[Path]:
        """Writes record.json, edit.safetensors, the traces and all figures into `folder`; returns their paths."""
        from editing.plot import plot_shown
        from tracer.plot import plot_average, plot_severed, plot_trace, save_figure
        from tracer.plot.interactive import hover_trace, save_html

        folder = Path(folder)
        paths = [folder / "record.json", folder / "edit.safetensors"]
        write_json(paths[0], self.record())
        self.edit.save(paths[1])
        for name, trace in (("before", self.before), ("after", self.after)):
            trace.save(folder / f"trace_{name}.safetensors")
            paths.append(save_figure(plot_trace(trace), folder / f"trace_{name}.png"))
            paths.append(save_html(hover_trace(trace), folder / f"trace_{name}.html"))
        paths.append(save_figure(plot_shown(self), folder / "before_after.png"))
        if self.average is not None:
            self.average.save(folder / "average.safetensors")
            paths.append(save_figure(plot_average(self.average), folder / "average.png"))
            if "state | mlp severed" in self.average.effects and "state" in self.average.effects:
                paths.append(save_figure(plot_severed(self.average), folder / "severed.png"))
        return paths


def locate_then_edit(
    model: LanguageModel,
    request: EditRequest,
    *,
    layer: int | None = None,
    editor: Callable[[int], Editor] | None = None,
    facts: Sequence[tracer.Fact] | None = None,
    n_facts: int = FACTS_TO_LOCATE,
    extra_paraphrases: Sequence[str] = (),
    extra_neighbours: Sequence[str] = (),
    samples: int = 10,
    window: int = 10,
    seed: int = 0,
    progress: bool | None = None,
) -> Report:
    """Traces a fact, locates the layer over many facts, edits there, and traces again.

    Args:
        model: edited in place; `report.edit.undo()` takes it back.
        request: the fact to change.
        layer: where to edit; None: the MLP peak of the average over `facts`.
        editor: from a layer to an editor; default `ROME(layer=...)`.
        facts: to locate with; default: the bundled ones, spread over their relations.
        n_facts: how many of them, that the model predicts, are traced.
        extra_paraphrases: other prompts for the request, beside those of its bundled relation.
        extra_neighbours: prompts that must not change, beside bundled facts of the same relation.
        samples: noise draws of every trace.
        window: of the MLP and attention maps of the request; the layer is located with a window in
            proportion to the model's depth (`tracer.site.proportional_window`).
        seed: of the edit; the noise keeps the tracer's own seed.
        progress: show bars.

    Raises:
        FactError, RequestError, SiteError: input that cannot be edited, before the model runs.
    """
    check_requests(model, [request])
    if layer is not None:
        model.anatomy.check_layer(layer)
    make = editor or (lambda at: ROME(layer=at))
    make(layer or 0)  # settings that do not fit are refused now, not after the traces
    fact = tracer.Fact(request.prompt, request.subject, subject_at=request.subject_at)
    corruption = measured_corruption(model, None)
    options: dict[str, Any] = {"samples": samples, "window": window, "corruption": corruption, "progress": progress}
    before = tracer.trace(model, fact, severed=("mlp",), **options)
    average = None
    if layer is None:
        narrow = {name: value for name, value in options.items() if name != "window"}
        average = tracer.average_to_locate(model, facts, most=n_facts, **narrow)
    place = None if average is None else tracer.locate(average)
    at = layer if place is None else place.layer
    assert at is not None
    asked = _prompts(model, request, before.answer, extra_paraphrases, extra_neighbours)
    old = _readings(model, asked, progress)
    edit = make(at).apply(model, [request], seed=seed, progress=progress)
    try:
        new = _readings(model, asked, progress)
        answered = tracer.Fact(request.prompt, request.subject, request.new, subject_at=request.subject_at)
        after = tracer.trace(model, answered.preflight(model, warn=False), severed=("mlp",), **options)
    except BaseException:
        edit.undo()
        raise
    shown = tuple(
        Shown(kind, prompt, target, own, a.new, b.new, a.old, b.old, a.text, b.text)
        for (kind, prompt, target, own), a, b in zip(asked, old, new, strict=True)
    )
    return Report(request, before, after, average, place, edit, shown)


@dataclass(frozen=True)
class _Reading:
    new: float
    old: float
    text: str


def _prompts(
    model: LanguageModel, request: EditRequest, answer: str, more: Sequence[str], neighbours: Sequence[str]
) -> list[tuple[PromptKind, str, str, str]]:
    """What to ask before and after: (kind, prompt, new answer, the answer it has now)."""
    own = request.true or answer
    ways = [*more, *paraphrases(request.prompt, request.subject)[:MOST_PARAPHRASES]]
    asked: list[tuple[PromptKind, str, str, str]] = [("edited", request.prompt, request.new, own)]
    for way in ways:
        asked.append(("paraphrase", way, request.new, own))
    for prompt in neighbours:
        read = prompt_encoding(model, prompt)
        said = predicted_id(model, read.ids, n_encoder=read.n_encoder)
        asked.append(("neighbour", prompt, request.new, visible(model.tokenizer, (said,))[0]))
    for fact in _neighbours(model, request, own):
        asked.append(("neighbour", fact.prompt, request.new, fact.answer or ""))
    return asked


def _neighbours(model: LanguageModel, request: EditRequest, own: str) -> list[tracer.Fact]:
    """Bundled facts the model knows, of other subjects: of the same relation if it is a bundled one.

    Those that share the old answer come first: an edit that spreads shows there.
    """
    relation = relation_of(request.prompt, request.subject)
    pool = bundled(relation) if relation else spread_over_relations(bundled())
    others = [fact for fact in pool if fact.subject != request.subject and fact.answer != request.new.strip()]
    others.sort(key=lambda fact: fact.answer != own.strip())
    known = []
    for fact in others:
        if len(known) == MOST_NEIGHBOURS:
            break
        tokenized = fact.preflight(model, warn=False)
        if predicted_id(model, tokenized.token_ids, n_encoder=tokenized.n_encoder) == tokenized.answer_id:
            known.append(fact)
    return known


def _readings(
    model: LanguageModel, asked: Sequence[tuple[PromptKind, str, str, str]], progress: bool | None
) -> list[_Reading]:
    pairs = [(prompt, answer) for _, prompt, new, old in asked for answer in (new, old)]
    scores = target_scores(model, pairs)
    texts = []
    with bar(len(asked), "completing prompts", show=progress, unit="prompt") as steps:
        for _, prompt, _, _ in asked:
            texts += complete(model, [prompt], new_tokens=12)
            steps.update()
    return [_Reading(new.prob, old.prob, text) for new, old, text in zip(scores[::2], scores[1::2], texts, strict=True)]
