"""KN: change a fact in the value slots of the few neurons that express it.

With v_i the column of W that neuron i writes, e and e' the output embeddings of old and new answer,
    update   v_i <- v_i - l1 |v_i| e / |e| + l2 |v_i| e' / |e'|
    erase    v_i <- 0
Source: Dai et al. 2022 (arXiv:2104.08696), sec. 5.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from torch import Tensor

from editing.change import writable
from editing.edit import Edit
from editing.errors import EditingWarning, RequestError
from editing.locate_then_edit.integrated_gradients import Rule
from editing.locate_then_edit.knowledge_neurons import (
    Coarse,
    Neuron,
    Question,
    coarse_neurons,
    fitting_share,
    of_the_relation,
    probability,
    questions,
    refined,
    strongest,
)
from editing.locate_then_edit.value_slots import answer_embedding, column, columns_changed
from editing.request import EditRequest, check_requests, listed
from editing.scoring.scores import target_scores
from editing.setting_checks import check_flag, check_number, check_share, check_whole, checked_seed, whole
from editing.shortfall import LARGE_CHANGE, LOST, warn_unsaid
from editing.stopwatch import now
from editing.writing import writing
from tracer.facts import paraphrases
from tracer.model import LanguageModel
from tracer.model.inputs import target_encoding
from tracer.model.tokens import visible
from tracer.progress import bar

Variant = Literal["update", "erase"]


@dataclass(frozen=True, kw_only=True)
class KN:
    """Knowledge neurons: settings and `apply`.

    Attributes:
        variant: "update" to the new answer, or "erase" the old one.
        subtract, add: l1 and l2, how much of the old answer's embedding goes and of the new one's comes.
        in_norms: l1 and l2 count in norms of the column; False: the embeddings are taken as they are.
        threshold: of coarse neurons, relative to the largest attribution of the prompt.
        share: of the prompts that a neuron must be coarse in.
        aim: the neurons a fact should keep on average, from and to; `share` moves for it, and of a fact with a
            single prompt, which no share can sift, so many of the strongest stay. None: all that `share` leaves.
        nodes, rule: points of the integral, "gauss-legendre" or "left" as published.
        ways: other prompts for a request, by its prompt; where none are given, those of a bundled relation.
        others: other facts; neurons in more than `relation_share` of those of a request's relation are spared.
        relation_share: of the other facts; a neuron of more of them belongs to the relation, not to the fact.
    """

    variant: Variant = "update"
    subtract: float = 1.0
    add: float = 8.0
    in_norms: bool = True
    threshold: float = 0.2
    share: float = 0.7
    aim: tuple[int, int] | None = (2, 5)
    nodes: int = 20
    rule: Rule = "gauss-legendre"
    ways: Mapping[str, Sequence[str]] = field(default_factory=dict)
    others: tuple[EditRequest, ...] = ()
    relation_share: float = 0.1

    def __post_init__(self) -> None:
        for name, kind in (("variant", Variant), ("rule", Rule)):
            if getattr(self, name) not in get_args(kind):
                raise RequestError(
                    f"There is no {name} {getattr(self, name)!r}. Choose from {', '.join(get_args(kind))}."
                )
        check_whole(self, {"nodes": 20})
        check_flag(self, "in_norms")
        object.__setattr__(self, "aim", _checked_aim(self.aim))
        object.__setattr__(self, "ways", _checked_ways(self.ways))
        if not isinstance(self.others, Collection) or not all(isinstance(one, EditRequest) for one in self.others):
            raise RequestError(f"others={self.others!r} are no EditRequests. Write others=(request, ...).")
        check_number(self, {"subtract": 1.0, "add": 8.0})
        check_share(self, {"threshold": 0.2, "share": 0.7, "relation_share": 0.1})

    @classmethod
    def preset(cls, name: str) -> KN:
        """Published settings: "bert" as in the paper, "gpt" and "gpt-j" as in the port used to compare editors.

        The port differs also in what this one does not follow: it attributes to what enters the activation
        function, and for an answer of several tokens adds the sum of their embeddings.

        Raises:
            RequestError: there are none of that name.
        """
        if name not in PRESETS:
            raise RequestError(f"No published settings {name!r}. Choose from {', '.join(PRESETS)}, or write KN().")
        return cls(**PRESETS[name])

    def apply(
        self, model: LanguageModel, requests: Sequence[EditRequest], *, seed: int = 0, progress: bool | None = None
    ) -> Edit:
        """Finds the neurons of all requests in the model as it is, then writes their columns.

        Args:
            model: edited in place; `Edit.undo` puts it back.
            requests: facts to change; `true` is the old answer, else the token the model predicts.
            seed: recorded; nothing is drawn.
            progress: show a bar; None: in a terminal or notebook.

        Raises:
            AnatomyError: this family has no value matrices.
            BaseModelError: a weight is quantised or offloaded.
            RequestError: two requests for one prompt and subject.
            EditFailedError: rounding swallows the change; the model is as it was.
        """
        requests, seed = listed(requests), checked_seed(seed)
        check_requests(model, requests)
        self._check_selections(requests)
        for layer in range(model.n_layers):
            writable(model, model.anatomy.value_weight_name(layer))
        edit = Edit(tuple(requests), (), {"method": "KN", **self._settings(), "seed": seed}, model.fingerprint())
        with writing(edit, model):
            self._write(edit, progress)
            if self.variant == "update":
                advice = (
                    "Use a lower threshold, for more neurons, or another editor: few columns seldom say a new answer."
                )
                warn_unsaid(edit, advice=advice, stacklevel=2)
        return edit

    def _write(self, edit: Edit, progress: bool | None) -> None:
        """All attributions, then request by request its columns; norms are those before any write."""
        model, facts = edit.applied_to, [*edit.requests, *self._relevant_others(edit.requests)]
        asked = [questions(model, self._prompts(fact), fact.true) for fact in facts]
        found, seconds = [], []
        answer_tokens = sum(len(question.answer_ids) for each in asked for question in each)
        with bar(answer_tokens * model.n_layers, "attributing", show=progress, unit="layer") as steps:
            options: dict[str, Any] = {"threshold": self.threshold, "nodes": self.nodes, "rule": self.rule}
            for each in asked:
                begun = now(model)
                found.append(coarse_neurons(model, each, **options, each_layer=steps.update))
                seconds.append(now(model) - begun)
        chosen, share = self._chosen(edit.requests, facts, found)
        sizes = {neuron: column(model, neuron).norm() for neuron in frozenset().union(*chosen)}
        for n, request in enumerate(edit.requests):
            begun = now(model)
            record = {"prompts": len(asked[n]), "share": share, "coarse": [len(each) for each in found[n].neurons]}
            record["neurons"] = [(*neuron, found[n].attribution[neuron]) for neuron in sorted(chosen[n])]
            record |= self._write_one(edit, request, asked[n][0], chosen[n], sizes)
            record["seconds"] = seconds[n] + now(model) - begun
            edit.diagnostics += (record,)
            _warn(record)

    def _relevant_others(self, requests: Sequence[EditRequest]) -> list[EditRequest]:
        relations = {request.relation for request in requests} - {None}
        return [other for other in self.others if other.relation in relations]

    def _check_selections(self, requests: Sequence[EditRequest]) -> None:
        """Raises RequestError for `others` that no request's relation can use."""
        if self.others and requests and all(request.relation is None for request in requests):
            raise RequestError(
                "others are facts of a request's relation, and these requests name none. Write "
                'EditRequest(..., relation="P495") for both, or others=().'
            )

    def _prompts(self, request: EditRequest) -> list[str]:
        """The request's own prompt first."""
        ways = self.ways.get(request.prompt)
        return [request.prompt, *(paraphrases(request.prompt, request.subject) if ways is None else ways)]

    def _chosen(
        self, requests: Sequence[EditRequest], facts: Sequence[EditRequest], found: Sequence[Coarse]
    ) -> tuple[list[set[Neuron]], float]:
        """The neurons to write for each request, those of its relation left out; and the share of prompts used."""
        share = fitting_share(found[: len(requests)], self.share, self.aim)
        kept = [self._kept(fact, share) for fact in found]
        chosen = []
        for request, own in zip(requests, kept, strict=False):
            rest = zip(facts[len(requests) :], kept[len(requests) :], strict=True)
            others = [neurons for fact, neurons in rest if fact.relation == request.relation]
            chosen.append(own - of_the_relation(others, self.relation_share))
        return chosen, share

    def _kept(self, fact: Coarse, share: float) -> set[Neuron]:
        """The neurons that enough prompts of a fact have, of a single prompt the strongest."""
        if len(fact.neurons) == 1 and self.aim is not None:
            return strongest(fact, self.aim[1])
        return refined(fact.neurons, share)

    def _write_one(
        self,
        edit: Edit,
        request: EditRequest,
        question: Question,
        neurons: Collection[Neuron],
        sizes: Mapping[Neuron, Tensor],
    ) -> dict[str, Any]:
        model = edit.applied_to
        pair = [(request.prompt, request.new)]
        before = (target_scores(model, pair)[0].prob, probability(model, question))
        new = target_encoding(model, request.prompt, request.new).target_ids
        written = []
        for layer in sorted({layer for layer, _ in neurons}):
            slots = [(layer, at) for at in sorted(at for each, at in neurons if each == layer)]
            columns = [self._moved(model, slot, sizes[slot], question.answer_ids, new) for slot in slots]
            change = columns_changed(model, slots, columns)
            written.append(edit.write(change))
            edit.changes += (change,)
        return {
            "subject": request.subject,
            "new": request.new,
            "old": "".join(visible(model.tokenizer, question.answer_ids)),
            "probability_before": before[0],
            "probability_written": target_scores(model, pair)[0].prob,
            "old_probability_before": before[1],
            "old_probability_written": probability(model, question),
            "relative_change": max((each.relative_change for each in written), default=0.0),
            "lost_by_rounding": max((each.lost_by_rounding for each in written), default=0.0),
        }

    def _moved(
        self, model: LanguageModel, slot: Neuron, size: Tensor, old: Sequence[int], new: Sequence[int]
    ) -> Tensor:
        """What is added to one column, [d_model]."""
        if self.variant == "erase":
            return -column(model, slot)
        gone, come = (answer_embedding(model, tokens) for tokens in (old, new))
        if self.in_norms:
            gone, come = size * gone / gone.norm(), size * come / come.norm()
        return self.add * come - self.subtract * gone

    def _settings(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "others": [other.prompt for other in self.others]}


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "bert": {"rule": "left"},
    "gpt": {"share": 0.4, "aim": None, "subtract": 2.0, "add": 2.0, "in_norms": False},
    "gpt-j": {"threshold": 0.1, "share": 0.4, "aim": None, "subtract": 2.0, "add": 2.0, "in_norms": False},
}


def _checked_aim(aim: Any) -> tuple[int, int] | None:
    """Raises RequestError where these are not two whole numbers, the second no smaller than the first."""
    if aim is None:
        return None
    if not isinstance(aim, Sequence) or isinstance(aim, str) or len(aim) != 2:
        raise RequestError(f"aim={aim!r} is no pair of numbers of neurons. Write aim=(2, 5), or None.")
    low, high = (whole("aim", one, 2) for one in aim)
    if not 0 <= low <= high or not high:
        raise RequestError(f"aim={aim!r} does not rise from 0 or more. Write aim=(2, 5), or None.")
    return low, high


def _checked_ways(ways: Any) -> dict[str, tuple[str, ...]]:
    """Raises RequestError where these are not lists of prompts by a request's prompt."""
    if (
        not isinstance(ways, Mapping)
        or not all(isinstance(text, str) for text in ways)
        or not all(
            isinstance(others, Collection)
            and not isinstance(others, str)
            and all(isinstance(text, str) for text in others)
            for others in ways.values()
        )
    ):
        raise RequestError(
            f"ways={ways!r} are no prompts by a request's prompt. Write ways={{request.prompt: [other, ...]}}."
        )
    return {prompt: tuple(others) for prompt, others in ways.items()}


def _warn(record: Mapping[str, Any]) -> None:
    """Says what went less well than it should."""
    said = f"{record['subject']} -> {record['new'].strip()}"
    if not record["neurons"]:
        warnings.warn(
            f"{said}: no neuron expresses the old answer in enough of {record['prompts']} prompts, so nothing is "
            f"changed. Give other ways of asking, or a lower share or threshold.",
            EditingWarning,
            stacklevel=4,
        )
    if record["relative_change"] > LARGE_CHANGE:
        warnings.warn(
            f"{said}: the change of {len(record['neurons'])} columns is {record['relative_change']:.2f} of a weight's "
            f"norm and may harm the model. Give more ways of asking, or a higher threshold.",
            EditingWarning,
            stacklevel=4,
        )
    if record["lost_by_rounding"] > LOST:
        share = f"{record['lost_by_rounding']:.0%}"
        warnings.warn(
            f"{said}: {share} of the change is lost by rounding. Edit in float32.", EditingWarning, stacklevel=4
        )
