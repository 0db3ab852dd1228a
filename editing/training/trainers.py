"""Editors that are trained from the command line: what each reads of the data, which options it has, what it tells."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from editing.errors import RequestError
from editing.memory.scope_training import ScopeTraining
from editing.memory.scoped import ScopedFacts, scoped_facts, together
from editing.memory.serac import SERAC
from editing.meta_learning.ke import KE
from editing.meta_learning.learned import Learned
from editing.meta_learning.mend import MEND
from editing.meta_learning.plan import TrainingPlan
from editing.meta_learning.readers import subjects_of, training_records
from editing.training.result import TrainingResult
from tracer.facts.readers import read_records
from tracer.model import LanguageModel


@dataclass(frozen=True, eq=False)
class Job:
    """What the command line asks for.

    Attributes:
        data: files to train on, one or more.
        n: of the records of each, evenly over it; None: all.
        benchmark: which answers of a zsRE file to teach.
        without: files whose subjects are left out.
        options: settings of plan and editor that were given, by name.
        open_model: opens the model.
        seed: of first values, split and order.
        folder: of the training.
        progress: whether to show a bar.
    """

    data: tuple[Path, ...]
    n: int | None
    benchmark: str | None
    without: tuple[Path, ...]
    options: Mapping[str, Any]
    open_model: Callable[[], LanguageModel]
    seed: int
    folder: Path
    progress: bool | None

    @property
    def places(self) -> dict[str, Any]:
        """What every `fit` takes."""
        return {"seed": self.seed, "folder": self.folder, "progress": self.progress}

    def check_options(self, editor: str, known: set[str]) -> None:
        """Raises RequestError where an option was given that this editor's training does not have."""
        unknown = sorted(self.options.keys() - known)
        if unknown:
            said = ", ".join(f"--{name.replace('_', '-')}" for name in unknown)
            raise RequestError(f"{said}: the training of {editor} has nothing of the kind. Leave it out.")


@dataclass(frozen=True)
class Trainer:
    """How an editor is trained, and the best of its validations in words."""

    fit: Callable[[Job], TrainingResult]
    told: Callable[[Mapping[str, Any]], str]


def _fit_learned(kind: type[Learned], job: Job) -> TrainingResult:
    of_plan = {one.name for one in dataclasses.fields(TrainingPlan)}
    job.check_options(kind.method, of_plan | {"blocks", "rate"})
    if len(job.data) != 1:
        raise RequestError(f"{kind.method} trains on one file, and here are {len(job.data)}. Give --data once.")
    records = training_records(job.data[0], n=job.n, benchmark=job.benchmark, without=job.without)
    plan = TrainingPlan(**{name: value for name, value in job.options.items() if name in of_plan})
    editor = kind(**{name: value for name, value in job.options.items() if name not in of_plan})
    trained = editor.fit(job.open_model(), records, plan=plan, **job.places).trained
    assert trained is not None and trained.result is not None
    return trained.result


def _told_learned(best: Mapping[str, Any]) -> str:
    return (
        f"{best['n']} held-out edits: edit loss {best['edit_loss']:.3f}, drift {best['drift']:.4f}, "
        f"taken {best['edits_taken']:.0%}, in other words {best['others_taken']:.0%}"
    )


def _fit_serac(job: Job) -> TrainingResult:
    job.check_options("SERAC", {one.name for one in dataclasses.fields(ScopeTraining)} | {"retriever"})
    options = dict(job.options)
    editor = SERAC(**{name: options.pop(name) for name in ("retriever",) if name in options})
    # The classifier shares nothing with the model, which is therefore not opened.
    found = editor.fit(None, scopes_of(job), training=ScopeTraining(**options), **job.places).finder()
    assert found.result is not None
    return found.result


def scopes_of(job: Job) -> ScopedFacts:
    """The facts of a job's files with prompts inside and outside of their scopes.

    Raises:
        RequestError: a file of which none is left.
    """
    others, found = subjects_of(job.without), []
    for path in job.data:
        records = read_records(path)
        step = max(1, len(records) // job.n) if job.n else 1
        facts = scoped_facts(records[::step][: job.n], source=path.name)
        kept = tuple(fact for fact in facts.facts if fact.subject.casefold() not in others)
        if not kept:
            raise RequestError(f"{path} has no fact to train on that is not in {', '.join(map(str, job.without))}.")
        found.append(dataclasses.replace(facts, facts=kept))
    return together(found)


def _told_serac(best: Mapping[str, Any]) -> str:
    return (
        f"of {best['n_inside']} held-out prompts in scope {best['inside']:.0%} are let in, of {best['n_outside']} "
        f"outside {best['outside']:.0%} are kept out"
    )


TRAINERS: Mapping[str, Trainer] = {
    "mend": Trainer(lambda job: _fit_learned(MEND, job), _told_learned),
    "ke": Trainer(lambda job: _fit_learned(KE, job), _told_learned),
    "serac": Trainer(_fit_serac, _told_serac),
}
