"""Makes the edits that an evaluation asks for, times them, and sees that nothing of them stays behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from editing.datasets.case import COMPUTED_TOGETHER, Case
from editing.edit import Edit
from editing.editors import Editor
from editing.errors import BaseModelError, CovarianceError, EditingError, EvaluationError
from editing.request import EditRequest
from editing.stopwatch import now
from tracer.errors import AnatomyError, SiteError, TracerError
from tracer.model import LanguageModel

FAILURES = (EditingError, TracerError)
# Of the model or the settings: no case can be blamed for them, and every case would meet them.
OF_NO_CASE = (AnatomyError, SiteError, BaseModelError, CovarianceError)


@dataclass(frozen=True, eq=False)
class Made:
    """An edit that was made, or why it could not be.

    Attributes:
        edit: None where it failed.
        seconds: that making it took, with what its kept values took when they were found; edits made
            together share their time evenly.
        together: edits that were computed together and share that time.
    """

    edit: Edit | None
    seconds: float
    reason: str = ""
    together: int = 1

    def diagnostics(self, number: int = 0) -> dict[str, Any]:
        """The editor's record of a request of the edit, or the reason of the failure."""
        if self.edit is None:
            return {"not_editable": self.reason}
        found = dict(self.edit.diagnostics[number]) if number < len(self.edit.diagnostics) else {}
        return {**found, COMPUTED_TOGETHER: self.together} if self.together > 1 else found


def made_together(model: LanguageModel, editor: Editor, requests: Sequence[EditRequest], seed: int) -> Made:
    """One applied edit of all requests.

    Raises:
        AnatomyError, SiteError, BaseModelError, CovarianceError: the editor cannot edit this model at all, or not
            with these settings.
    """
    begun = now(model)
    try:
        edit = editor.apply(model, requests, seed=seed, progress=False)
    except OF_NO_CASE:
        raise
    except FAILURES as error:
        return Made(None, now(model) - begun, str(error))
    return Made(edit, now(model) - begun + spared(edit))


def made_each(model: LanguageModel, editor: Editor, cases: Sequence[Case], seed: int) -> Iterator[tuple[Case, Made]]:
    """Each case with its own applied edit: computed together where the editor can, applied in turn.

    The caller undoes an edit before it asks for the next.
    """
    computed = Computed.by(getattr(editor, "each", None), model, cases, seed)
    for number, case in enumerate(cases):
        if case.request is None:
            yield case, Made(None, 0.0, case.refused)
        else:
            yield case, computed.made(model, number) or made_together(model, editor, [case.request], seed)


class Computed:
    """Edits of some cases, by their number, that were computed together and are not applied yet.

    Attributes:
        edits: theirs.
        seconds: an even share of the time that they took.
    """

    def __init__(self, edits: Mapping[int, Edit], seconds: float) -> None:
        self.edits, self.seconds = edits, seconds

    @classmethod
    def by(
        cls, compute: Callable[..., list[Edit]] | None, model: LanguageModel, cases: Sequence[Case], seed: int
    ) -> Computed:
        """By an editor's `each` or `in_turn`; nothing where it has none, or where one of the edits cannot be made."""
        asked = {number: case.request for number, case in enumerate(cases) if case.request is not None}
        if compute is None or len(asked) < 2:
            return cls({}, 0.0)
        begun = now(model)
        try:
            edits = compute(model, list(asked.values()), seed=seed, progress=False)
        except FAILURES:  # made alone it will say why
            return cls({}, 0.0)
        return cls(dict(zip(asked, edits, strict=True)), (now(model) - begun) / len(asked))

    def made(self, model: LanguageModel, number: int) -> Made | None:
        """The edit of this case, applied; None: it is not here, or not for the model as it is."""
        edit = self.edits.get(number)
        if edit is None:
            return None
        begun = now(model)
        try:
            edit.apply(model)
        except BaseModelError:  # another edit than the one computed here was made before it
            return None
        except FAILURES as error:
            return Made(None, self.seconds, str(error))
        return Made(edit, self.seconds + now(model) - begun + spared(edit), together=len(self.edits))


def spared(edit: Edit) -> float:
    """Seconds that kept values took when they were found."""
    return sum(record["value_seconds"] for record in edit.diagnostics if record.get("value_kept"))


@contextmanager
def left_as_it_was(model: LanguageModel) -> Iterator[None]:
    """Checks that the block leaves weights, hooks and list of edits as they were.

    Raises:
        EvaluationError: something stayed behind, and every later score would be of another model.
    """
    before = model.fingerprint()
    hooks = hook_count(model)
    yield
    if model.edits:
        raise EvaluationError(f"{model.edits[-1]!r} was not undone.")
    if hook_count(model) != hooks:
        raise EvaluationError(
            f"The editor left {hook_count(model) - hooks} hooks on {model.name}: undo must remove them."
        )
    if model.fingerprint() != before:
        raise EvaluationError(f"Undo did not give back the weights of {model.name} bit for bit.")


def hook_count(model: LanguageModel) -> int:
    """Hooks on all modules."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.torch.modules())
