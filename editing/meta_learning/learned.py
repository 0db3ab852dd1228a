"""What MEND and KnowledgeEditor share: matrices, training, and edits of one forward and one backward pass."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from editing.edit import Edit
from editing.errors import RequestError
from editing.meta_learning.factors import frozen
from editing.meta_learning.hypernetwork import Hypernetwork
from editing.meta_learning.matrices import Sizes, feed_forward_weights, lowest_layer, sizes
from editing.meta_learning.objective import Objective, Weighted
from editing.meta_learning.pieces import Pieces, changes, pieces_of, request_records
from editing.meta_learning.plan import TrainingPlan
from editing.meta_learning.records import TrainingRecord, check_disjoint, digest, split_by_subject
from editing.meta_learning.texts import texts_of
from editing.meta_learning.trained import Trained, read_editor, untrained, write_editor
from editing.meta_learning.training import Task, train
from editing.request import EditRequest, check_model, check_requests, listed
from editing.scoring.scores import Pair, target_scores
from editing.setting_checks import check_not_negative, check_whole, checked_seed
from editing.shortfall import warn_unsaid
from editing.training.checkpoint import EDITOR, State
from editing.writing import editable, writing
from tracer.errors import FileFormatError
from tracer.model import LanguageModel
from tracer.precision import wide_dtype
from tracer.progress import bar
from tracer.storage import of_this_version

REQUESTS_TOGETHER = 16  # requests whose gradients one pass computes


@dataclass(frozen=True, kw_only=True)
class Learned(ABC):
    """An editor that learns to edit one model before it can.

    Attributes:
        blocks: the matrices of the MLPs of so many last blocks are changed, of an encoder-decoder in both stacks.
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
    of_edits: ClassVar[frozenset[str]] = frozenset()  # settings that count after training too

    def __post_init__(self) -> None:
        if isinstance(self.weights, str):
            raise RequestError(f"weights={self.weights!r} is one name. Write weights=({self.weights!r},).")
        if not isinstance(self.weights, Sequence):
            raise RequestError(f"weights={self.weights!r} is not a sequence of names. Write weights=(name, ...).")
        check_whole(self, {"blocks": 3})
        check_not_negative(self, {"edit_weight": 0.1, "drift_weight": 1.0})
        if not self.edit_weight + self.drift_weight > 0:
            raise RequestError(
                f"edit_weight={self.edit_weight}, drift_weight={self.drift_weight} compare no networks. Write "
                f"edit_weight=0.1, drift_weight=1.0."
            )

    @abstractmethod
    def network(self, sizes: Sizes, *, embedding_size: int, dtype: torch.dtype, seed: int) -> Hypernetwork:
        """An untrained network for matrices of these sizes."""

    @abstractmethod
    def optimiser(self, network: Hypernetwork) -> torch.optim.Optimizer:
        """For a network that is to be trained."""

    @abstractmethod
    def objective(self) -> Objective:
        """What training minimises at first."""

    def rate_factor(self, step: int, steps: int) -> float:
        """What the rates are multiplied by at a step."""
        return 1.0

    def scales(self, model: LanguageModel, pairs: Sequence[Pair]) -> list[float]:
        """What each request's loss counts in a call."""
        return [1.0] * len(pairs)

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
        check_model(model)
        plan, base, seed = plan or TrainingPlan(), model.fingerprint(), checked_seed(seed)
        if held_out is None:
            records, held_out = split_by_subject(records, plan.held_out, seed)
        check_disjoint(records, held_out)
        editor = self if self.weights else dataclasses.replace(self, weights=feed_forward_weights(model, self.blocks))
        with editable(model):  # parameters made in inference mode could never be trained
            network = editor._new_network(model, seed)
        state = State(network, editor.optimiser(network))
        about = {
            **{"method": self.method, "settings": editor.settings(), "plan": dataclasses.asdict(plan), "seed": seed},
            **{"base": base, "records": digest(records), "held_out": digest(held_out)},
            **({"decoder_starts": model.decoder_starts} if model.decoder_starts else {}),
        }

        def write_best(where: Path) -> None:
            write_editor(where / EDITOR, self.method, editor.settings(), Trained(network, base, model.name))

        rate, yardstick = partial(editor.rate_factor, steps=plan.steps), Weighted(self.edit_weight, self.drift_weight)
        task = Task(
            model, network, editor.objective(), records, held_out, plan, seed, rate, yardstick, about, write_best
        )
        with editable(model), frozen(model):
            result = train(task, state, folder=None if folder is None else Path(folder), progress=progress)
        return dataclasses.replace(editor, trained=Trained(network.eval(), base, model.name, result))

    def _new_network(self, model: LanguageModel, seed: int) -> Hypernetwork:
        lowest_layer(model, self.weights)  # says so where a weight is in no block
        dtype = wide_dtype(model.dtype)
        found = sizes(model, self.weights)
        network = self.network(found, embedding_size=model.anatomy.embedding_size, dtype=dtype, seed=seed)
        return network.to(model.device)

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
        tensors, about = read_editor(path, cls.method)
        with of_this_version(path, "a trained editor"):
            editor = cls(**{**about["settings"], "weights": tuple(about["settings"]["weights"])})
            dtype, sizes = getattr(torch, about["dtype"]), {name: tuple(size) for name, size in about["sizes"].items()}
            network = editor.network(sizes, embedding_size=about["embedding_size"], dtype=dtype, seed=0)
        try:
            network.load_state_dict(tensors)
        except RuntimeError as error:
            raise FileFormatError(f"{path} is damaged: {error}. Train again.") from error
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
        requests, seed = listed(requests), checked_seed(seed)
        check_requests(model, requests)
        (edit,) = self._begun(model, [requests], seed)
        pairs = [(request.prompt, request.new) for request in requests]
        with writing(edit, model):
            before = target_scores(model, pairs)
            pieces = list(self._pieces(model, pairs, progress))
            self._write(edit, pieces)
            rounds = self._again(edit, pieces, pairs)
            after = target_scores(model, pairs)
            edit.diagnostics = tuple(
                {**record, "probability_before": old.prob, "probability_written": new.prob, "rounds": times}
                for record, old, new, times in zip(
                    request_records(requests, pieces), before, after, rounds, strict=True
                )
            )
            warn_unsaid(edit, advice="Train longer, or on facts more like these.", stacklevel=2)
        return edit

    def each(
        self, model: LanguageModel, requests: Sequence[EditRequest], *, seed: int = 0, progress: bool | None = None
    ) -> list[Edit]:
        """An edit for each request alone, not applied; their gradients are computed together."""
        requests, seed = listed(requests), checked_seed(seed)
        if self.most > 1:  # how often a change is added shows on the edited model alone
            return [self._apart(model, request, seed) for request in requests]
        for request in requests:  # they may contradict each other
            check_requests(model, [request])
        edits = self._begun(model, [[request] for request in requests], seed)
        pairs = [(request.prompt, request.new) for request in requests]
        with editable(model):
            for edit, pieces in zip(edits, self._pieces(model, pairs, progress), strict=True):
                edit.changes = changes([pieces])
                edit.diagnostics = request_records(edit.requests, [pieces])
        return edits

    def _apart(self, model: LanguageModel, request: EditRequest, seed: int) -> Edit:
        with self.apply(model, [request], seed=seed, progress=False) as edit:
            return edit

    def _trained(self) -> Trained:
        if self.trained is None:
            raise RequestError(untrained(self.method))
        return self.trained

    def _begun(self, model: LanguageModel, groups: Sequence[Sequence[EditRequest]], seed: int) -> list[Edit]:
        """An empty edit for each group of requests, after all checks."""
        trained = self._trained()
        base = trained.check(model, self.method)
        about = {"method": self.method, **self.settings(), "network": str(trained), "seed": seed}
        return [Edit(tuple(group), (), about, base) for group in groups]

    def _pieces(self, model: LanguageModel, pairs: Sequence[Pair], progress: bool | None) -> Iterator[Pieces]:
        """The change of every matrix for each (prompt, new) pair."""
        network = self._trained().network.to(model.device)
        layer, scales = lowest_layer(model, tuple(network.sizes)), self.scales(model, pairs)
        with bar(len(pairs), self.method, show=progress, unit="edit") as shown, frozen(model), torch.no_grad():
            for at in range(0, len(pairs), REQUESTS_TOGETHER):
                some = pairs[at : at + REQUESTS_TOGETHER]
                texts = texts_of(model, layer, some)
                scale = torch.tensor(scales[at : at + REQUESTS_TOGETHER], dtype=torch.float64, device=model.device)
                terms = network.proposed(texts, network.asked(model, some), scale)
                for row in range(len(some)):
                    yield pieces_of(terms, row)
                shown.update(len(some))

    def _write(self, edit: Edit, pieces: Sequence[Pieces]) -> None:
        written = {}
        for change in changes(pieces):
            written[change.weight] = dataclasses.asdict(edit.write(change))
            edit.changes += (change,)
        edit.summary = {"weights": written}

    def _again(self, edit: Edit, pieces: Sequence[Pieces], pairs: Sequence[Pair]) -> list[int]:
        """Adds the change of each request whose answer is not the new one yet once more, up to `most` times.

        Returns how often each was added in all.
        """
        rounds = [1] * len(pairs)
        for _ in range(self.most - 1):
            scores = target_scores(edit.applied_to, pairs)
            missing = [number for number, score in enumerate(scores) if not score.tf_exact]
            if not missing:
                break
            self._write(edit, [pieces[number] for number in missing])
            for number in missing:
                rounds[number] += 1
        return rounds
