"""Every editor on every data file by every protocol, into one folder; killed and started again it goes on.

An evaluation that is finished is not run again, and its editor not made again for it. An editor that cannot be
made or fails is left out with its reason, and the others go on. Later calls may add editors, data and protocols.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from editing.comparison.costs import costs_known
from editing.comparison.entrant import Entrant
from editing.comparison.evaluating import Evaluating
from editing.comparison.folder import ABOUT, Comparison, costs_path, read_comparison
from editing.comparison.notes import Notes
from editing.comparison.plan import ComparisonPlan, Data, check_sizes, tasks
from editing.comparison.progress import shown_progress
from editing.comparison.unit import in_order, units_of
from editing.datasets.benchmarks import Benchmark
from editing.evaluation.manifest import threads_before
from tracer.model import LanguageModel
from tracer.storage import remove_half_written
from tracer.workers import Backend, team_of, threads_each, torch_threads


def compare(
    model: LanguageModel,
    entrants: Sequence[Entrant],
    data: Data,
    folder: str | Path,
    *,
    plan: ComparisonPlan | None = None,
    workers: int = 0,
    backend: Backend = "local",
    threads: int | None = None,
    progress: bool | None = None,
) -> Comparison:
    """Evaluates editors beside each other.

    Args:
        model: unedited; it is so again afterwards.
        entrants: who takes part.
        data: benchmarks, also MQuAKE's, by the name that tables give them.
        folder: for everything; see `editing.comparison.folder`.
        plan: default `ComparisonPlan()`.
        workers: processes that hold a model each and evaluate an editor each; 0 evaluates in this process. Scores
            do not depend on them; costs that are measured while several run are less exact.
        backend: "local" processes, or "ray" for those of a Ray cluster, whose machines all see the folder.
        threads: of PyTorch in each process, which rounding depends on; default: what the folder was made with,
            else the present number, shared between the workers.
        progress: show bars.

    Raises:
        EvaluationError: the folder holds another model's comparison or one of other settings, a batch is larger
            than its data, no editor could be evaluated, or one left something on the model.
        WorkerError: there can be no such workers, or one of them says EvaluationError.
    """
    folder, plan = Path(folder), plan or ComparisonPlan()
    check_sizes(data, plan)
    threads = threads or threads_before(folder / ABOUT, "comparison") or threads_each(workers)
    with torch_threads(threads):
        notes = Notes(folder, model)
        costs = plan.costs and any(isinstance(one, Benchmark) for one in data.values())
        units = [
            unit
            for one in entrants
            for unit in units_of(
                one,
                tasks(one, data, folder, plan, notes.fingerprint),
                costs=costs and not costs_known(costs_path(folder, one.label), one, cold=plan.cold, workers=workers),
            )
        ]
        notes.begin(entrants, units)
        remove_half_written(folder, folder / "costs")
        workers = min(workers, len(units))
        units = in_order(units, workers)
        job = Evaluating(folder, data, plan, notes.fingerprint, workers, False if workers else progress)
        with team_of(backend, workers, job, model, threads) as team, shown_progress(units, progress) as done:
            for at, outcome in team.answers(units):
                notes.note(units[at], outcome)
                done(at)
    return read_comparison(folder)
