"""What MEND and KnowledgeEditor share: matrices, training, and edits of one forward and one backward pass."""

from __future__ import annotations

import dataclasses
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from editing.edit import Edit
from editing.errors import EditingWarning, RequestError
from editing.locate_then_edit.settings import editable
from editing.meta_learning.checkpoint import EDITOR, State
from editing.meta_learning.factors import frozen
from editing.meta_learning.hypernetwork import Hypernetwork
from editing.meta_learning.matrices import Sizes, check_sizes, feed_forward_weights, lowest_layer, sizes
from editing.meta_learning.objective import Objective, Weighted
from editing.meta_learning.pieces import Pieces, changes, pieces_of, request_records
from editing.meta_learning.plan import TrainingPlan
from editing.meta_learning.records import TrainingRecord, digest, split_by_subject
from editing.meta_learning.texts import texts_of
from editing.meta_learning.trained import Trained, untrained, write_editor
from editing.meta_learning.training import Task, train
from editing.request import EditRequest, check_requests
from editing.scores import target_scores
from editing.writing import writing
from tracer.model import LanguageModel
from tracer.progress import bar
from tracer.storage import of_this_version, read_tensors

TOGETHER = 16  # requests whose gradients one pass computes


@dataclass(frozen=True, kw_only=True)
class Learned(ABC):
    """An editor that learns to edit one model before it can.

    Attributes:
        blocks: the matrices of the MLPs of so many last blocks are changed.
        weights: or exactly these, by parameter name.
        edit_weight, drift_weight: of the two losses, in the yardstick that chooses the best network.
        trained: the network; None before `fit` or `load`.
    """

    blocks: int = 3
    weights: tuple[str, ...] = ()
    edit_weight: float = 0.1
    drift_weight: float = 1.0
    trained: Trained | None = field(default=None, repr=False, compare=False)

    method: ClassVar[str]

    @abstractmethod
    def network(self, sizes: Sizes, *, embedding_size: int, dtype: torch.dtype, seed: int) -> Hypernetwork:
        """An untrained one."""

    @abstractmethod
    def optimiser(self, network: Hypernetwork) -> torch.optim.Optimizer:
        """For a network that is to be trained."""

    @abstractmethod
    def objective(self) -> Objective:
        """What training minimises at first."""

    def rate_factor(self, step: int, steps: int) -> float:
        """What the rates are multiplied by at a step."""
        return 1.0

    def scales(self, lengths: Tensor) -> Tensor:
        """What each request's loss counts in a call, from the tokens of their answers, [request]."""
        return torch.ones_like(lengths, dtype=torch.float64)

    @property
    def most(self) -> int:
        """How often a change may be added until the answer is the new one."""
        return 1

    def settings(self) -> dict[str, Any]:
        """All but the network."""
        return {one.name: getattr(self, one.name) for one in dataclasses.fields(self) if one.name != "trained"}

    def fit(
        self,
        model: LanguageModel,
        records: Sequence[TrainingRecord],
        *,
        held_out: Sequence[TrainingRecord] | None = None,
        plan: TrainingPlan | None = None,
        seed: int = 0,
        folder: str | Path | None = None,
        progress: bool | None = None,
    ) -> Self:
        """Trains a network for this model and returns an editor with it.

        Args:
            model: not changed.
            records: to train on.
            held_out: to validate on; None: some of `records`, with subjects of their own.
            plan: how long, on how much at once.
            seed: of the network's first values, the split and the order.
            folder: for checkpoints; called again with it, a training that was stopped goes on.
            progress: whether to show a bar; None: in a terminal or notebook.

        Raises:
            RequestError: too few records, or a folder that holds another training.
            BaseModelError: a matrix that is quantised or offloaded.
            EditFailedError: no loss was finite.
        """
        plan, folder = plan or TrainingPlan(), None if folder is None else Path(folder)
        if held_out is None:
            records, held_out = split_by_subject(records, plan.held_out, seed)
        editor = self if self.weights else dataclasses.replace(self, weights=feed_forward_weights(model, self.blocks))
        lowest_layer(model, editor.weights)
        dtype = torch.float64 if model.dtype == torch.float64 else torch.float32
        network = editor.network(
            sizes(model, editor.weights), embedding_size=model.anatomy.embedding_size, dtype=dtype, seed=seed
        ).to(model.device)
        state = State(network, editor.optimiser(network), editor.objective())
        base = model.fingerprint()
        about = {
            **{"method": self.method, "settings": editor.settings(), "plan": dataclasses.asdict(plan), "seed": seed},
            **{"base": base, "records": digest(records), "held_out": digest(held_out)},
        }
        task = Task(
            model,
            records,
            held_out,
            plan,
            seed,
            lambda step: editor.rate_factor(step, plan.steps),
            Weighted(self.edit_weight, self.drift_weight),
            about,
            lambda where, now: write_editor(
                where / EDITOR, self.method, editor.settings(), Trained(now.network, base, model.name)
            ),
        )
        with editable(model), frozen(model):
            result = train(task, state, folder=folder, progress=progress)
        return dataclasses.replace(editor, trained=Trained(network.eval(), base, model.name, result))

    def save(self, path: str | Path) -> None:
        """Writes settings and network to one safetensors file, atomically."""
        write_editor(path, self.method, self.settings(), self._trained())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads what `save` wrote, or the best network of a training's folder.

        Raises:
            FileFormatError: the file is missing, truncated or something else.
            RequestError: it holds another method's network.
        """
        path = Path(path) / EDITOR if Path(path).is_dir() else Path(path)
        tensors, about = read_tensors(path, "trained editor")
        if about.get("method") != cls.method:
            raise RequestError(f"{path} holds a network of {about.get('method')}, not of {cls.method}.")
        with of_this_version(path, "a trained editor"):
            editor = cls(**{**about["settings"], "weights": tuple(about["settings"]["weights"])})
            network = editor.network(
                {weight: (n, m) for weight, (n, m) in about["sizes"].items()},
                embedding_size=about["embedding_size"],
                dtype=getattr(torch, about["dtype"]),
                seed=0,
            )
        try:
            network.load_state_dict(tensors)
        except RuntimeError as error:
            raise RequestError(f"{path} is damaged: {error}. Train again.") from error
        return dataclasses.replace(editor, trained=Trained(network.eval(), about["base"], about["model"]))

    def apply(
        self, model: LanguageModel, requests: Sequence[EditRequest], *, seed: int = 0, progress: bool | None = None
    ) -> Edit:
        """Writes the sum of the requests' changes, each made on the model as it is.

        Args:
            model: edited in place; `Edit.undo` puts it back.
            requests: facts to write together; none is no change.
            seed: recorded; nothing is drawn.
            progress: whether to show a bar; None: in a terminal or notebook.

        Raises:
            RequestError: the editor is not trained, or two requests contradict each other.
            BaseModelError: the model lacks a matrix the network was trained for.
            EditFailedError: a change is not finite, or rounding swallows it; the model is as it was.
        """
        edit = self._begun(model, requests, seed)
        with writing(edit, model):
            pieces = list(self._pieces(model, requests, progress))
            before = target_scores(model, [(request.prompt, request.new) for request in requests])
            self._write(edit, pieces)
            self._again(edit, pieces)
            after = target_scores(model, [(request.prompt, request.new) for request in requests])
            edit.diagnostics = tuple(
                {**record, "probability_before": old.prob, "probability_written": new.prob}
                for record, old, new in zip(request_records(requests, pieces), before, after, strict=True)
            )
        return edit

    def each(
        self, model: LanguageModel, requests: Sequence[EditRequest], *, seed: int = 0, progress: bool | None = None
    ) -> list[Edit]:
        """An edit for each request alone, not applied; their gradients are computed together."""
        if self.most > 1:  # how often a change is added shows on the edited model alone
            edits: list[Edit] = []
            for request in requests:
                edits.append(self.apply(model, [request], seed=seed, progress=False))
                edits[-1].undo()
            return edits
        edits = [self._begun(model, [request], seed) for request in requests]
        check_requests(model, requests)
        with editable(model):
            for edit, pieces in zip(edits, self._pieces(model, requests, progress), strict=True):
                edit.changes = changes([pieces])
                edit.diagnostics = request_records(edit.requests, [pieces])
        return edits

    def _begun(self, model: LanguageModel, requests: Sequence[EditRequest], seed: int) -> Edit:
        """An empty edit, after all checks."""
        trained = self._trained()
        check_sizes(model, trained.network.sizes)
        check_requests(model, requests)
        base = model.fingerprint()
        if base != trained.base and not model.edits:
            warnings.warn(
                f"{self.method} was trained on other weights ({trained.model}, {trained.base[:12]}; these are "
                f"{base[:12]}). Train it on this model, in this dtype.",
                EditingWarning,
                stacklevel=3,
            )
        about = {"method": self.method, **self.settings(), "network": str(trained), "seed": seed}
        return Edit(tuple(requests), (), about, base)

    def _trained(self) -> Trained:
        if self.trained is None:
            raise RequestError(untrained(self.method))
        return self.trained

    def _pieces(self, model: LanguageModel, requests: Sequence[EditRequest], progress: bool | None) -> Iterator[Pieces]:
        """The change of every matrix for each request, float64 on the CPU."""
        network = self._trained().network.to(model.device)
        layer, pairs = lowest_layer(model, tuple(network.sizes)), [(one.prompt, one.new) for one in requests]
        texts = [texts_of(model, layer, pairs[at : at + TOGETHER]) for at in range(0, len(pairs), TOGETHER)]
        lengths = [each.rows.bincount(minlength=each.n_rows) for each in texts]
        scales = self.scales(torch.cat(lengths)).split([len(each) for each in lengths]) if texts else ()
        with bar(len(pairs), self.method, show=progress, unit="edit") as shown, frozen(model), torch.no_grad():
            for number, (each, scale) in enumerate(zip(texts, scales, strict=True)):
                asked = network.asked(model, pairs[number * TOGETHER : number * TOGETHER + each.n_rows])
                terms = network.proposed(each, asked, scale.to(each.base))
                for row in range(each.n_rows):
                    yield pieces_of(terms, row)
                shown.update(each.n_rows)

    def _write(self, edit: Edit, pieces: Sequence[Pieces]) -> None:
        begun = time.perf_counter()
        written = {}
        for change in changes(pieces):
            written[change.weight] = dataclasses.asdict(edit.write(change))
            edit.changes += (change,)
        edit.summary = {"weights": written, "seconds_writing": time.perf_counter() - begun}

    def _again(self, edit: Edit, pieces: Sequence[Pieces]) -> None:
        """Adds the change of each request whose answer is not the new one yet once more, up to `most` times."""
        assert edit.model is not None
        pairs = [(request.prompt, request.new) for request in edit.requests]
        for _ in range(self.most - 1):
            scores = target_scores(edit.model, pairs)
            missing = [piece for piece, score in zip(pieces, scores, strict=True) if not score.tf_exact]
            if not missing:
                return
            self._write(edit, missing)
