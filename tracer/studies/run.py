"""Trace many facts into a folder, so that a run that was killed goes on and ends the same.

Facts are taken in rounds. In each round the model is asked which facts it predicts, those are
traced in batches, each trace becomes one file, and the manifest says what became of every fact.
Whatever decides a byte (weights, settings, facts, rounds, threads) stands in the manifest; a batch of
which any file is missing is traced again whole. So the files of a killed and continued study equal
those of an undisturbed one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tracer.corrupt import measured_corruption
from tracer.errors import FactError, FileFormatError, StudyError
from tracer.fact import Fact, TokenizedFact
from tracer.model import LanguageModel, check_opened
from tracer.model.ranks import folder_here
from tracer.plan import Plan
from tracer.progress import bar
from tracer.storage import remove_half_written
from tracer.studies.averaging import usable
from tracer.studies.batches import Batch, Facts, Found, Tracing, batches_of
from tracer.studies.manifest import NAME, Entry, Manifest, plan_record, software
from tracer.studies.study import Study
from tracer.workers import Backend, Team, team_of, threads_each, torch_threads

ROUND = 50


def run_study(
    model: LanguageModel,
    facts: Sequence[Fact],
    out: str | Path,
    *,
    plan: Plan | None = None,
    known_only: bool = True,
    most: int | None = None,
    until_ci: float | None = None,
    round_size: int | None = None,
    workers: int = 0,
    backend: Backend = "local",
    threads: int | None = None,
    source: str = "",
    progress: bool | None = None,
) -> Study:
    """Traces facts into the folder `out`, or goes on where a run stopped that was killed there.

    Args:
        model: from `tracer.load`.
        facts: at least one; what the corruption needs (sigma, say) is measured over all of them.
        out: holds manifest.json and a safetensors file for each fact traced.
        plan: what to trace and how; default `tracer.Plan()`, the paper's settings.
        known_only: leave out facts whose answer is not the model's own prediction; the manifest lists them.
        most: stop after this many facts that can be traced. A later run may ask for more, not for fewer.
        until_ci: stop at the end of the first round after which the 95 % interval (mean ± 1.96 SE) at the peak
            of every map is narrower than ± this, in the metric's unit. Stopping when an interval looks
            good makes it cover less than 95 %, the more so the smaller the rounds; for a number to report, fix
            `most` beforehand.
        round_size: facts that can be traced in one round; default 50, or what the folder was made with.
        workers: processes that hold a model each and trace batches; 0 traces in this process.
        backend: "local" processes, or "ray" for those of a Ray cluster.
        threads: of PyTorch in each process, which rounding depends on; default: what the folder was made with,
            else the present number, shared between the workers.
        source: where the facts come from, for the manifest.
        progress: show a bar; None: in a terminal or notebook.

    Raises:
        FactError: no facts.
        StudyError: the folder holds another study, or a worker dies on every attempt.
        WorkerError: there can be no such workers, or they cannot work.
    """
    check_opened(model)
    if round_size is not None and round_size < 1 or threads is not None and threads < 1:
        raise StudyError(f"round_size={round_size}, threads={threads}: write 1 or more of each, or None.")
    facts, out = list(facts), folder_here(model, out)
    if not facts or (most is not None and most < 1):
        raise FactError("No facts to study. Try tracer.facts.bundled(), and most=1 or more.")
    if until_ci is not None and not until_ci > 0:
        raise StudyError(f"until_ci={until_ci} is no width. Write e.g. until_ci=0.01, or None.")
    before = Manifest.load(out) if (out / NAME).is_file() else None
    settings: dict[str, Any] = {} if before is None else before.settings
    plan = plan or Plan()
    plan = dataclasses.replace(plan, corruption=measured_corruption(model, plan.corruption, facts))
    threads = int(threads or settings.get("threads") or threads_each(workers))
    size = round_size or settings.get("round") or ROUND
    decided = {"plan": plan_record(plan), "known_only": known_only, "round": size, "threads": threads}
    manifest = _manifest_of(model, facts, decided, source)
    manifest.stop = stop = {"most": most, "until_ci": until_ci}
    if before is not None:
        before.check_same(manifest, out)
        manifest = before
    model.torch.eval()  # dropout would make every pass another one
    with torch_threads(threads), team_of(backend, workers, Tracing(plan), model, threads) as team:
        total = len(facts) if most is None else min(most, len(facts))
        with bar(total, "tracing facts", show=progress, unit="fact") as steps:
            _Run(model, plan, manifest, stop, out, team, steps).to_the_end()
    return Study.open(out)


def _manifest_of(model: LanguageModel, facts: Sequence[Fact], settings: dict[str, Any], source: str) -> Manifest:
    about = {
        "name": model.name,
        "fingerprint": model.fingerprint(),
        "device": model.device.type,
        "n_layers": model.n_layers,
    }
    about |= {"decoder_starts": model.decoder_starts} if model.decoder_starts else {}
    return Manifest(model=about, settings=settings, facts=[Entry(fact) for fact in facts], source=source)


class _Run:
    """One run of a study: examines facts, has them traced, and keeps files and manifest up to date.

    What is new with this run enters the manifest late, other software when it traces and `stop` at its end: a run
    that is refused because the folder holds more leaves the manifest as it was.
    """

    def __init__(
        self,
        model: LanguageModel,
        plan: Plan,
        manifest: Manifest,
        stop: dict[str, Any],
        out: Path,
        team: Team[Facts, Found],
        steps: Any,
    ) -> None:
        self.model, self.plan, self.manifest, self.team, self.steps = model, plan, manifest, team, steps
        self.folder, self.stop = out, stop
        self.known_only: bool = manifest.settings["known_only"]
        self.size: int = manifest.settings["round"]
        self.most: int | None = stop["most"]
        self.until_ci: float | None = stop["until_ci"]

    def to_the_end(self) -> None:
        """Round after round, until the facts run out or enough are traced."""
        remove_half_written(self.folder, self.folder / "facts")
        done = 0
        for facts in self._rounds():
            self.manifest.save(self.folder)
            self._trace(facts)
            done = max(facts) + 1
            self.manifest.save(self.folder)
            if self.until_ci is not None and _narrow(Study(self.folder, self.manifest), self.until_ci):
                break
        later = range(done, len(self.manifest.facts))
        if beyond := [number for number in later if Study.path_in(self.folder, number).is_file()]:
            raise StudyError(
                f"{self.folder} already holds {len(beyond)} facts more than this run would trace. Ask for at least "
                f"as many facts as before, or give this study a folder of its own (--out)."
            )
        self.manifest.note_software(software())
        self.manifest.stop = self.stop
        self.manifest.save(self.folder)

    def _rounds(self) -> Iterator[dict[int, TokenizedFact]]:
        """Facts that can be traced, with their numbers; `size` at a time."""
        facts: dict[int, TokenizedFact] = {}
        n = 0
        for number in range(len(self.manifest.facts)):
            tokenized = self._examined(number)
            if tokenized is None:
                continue
            facts[number] = tokenized
            n += 1
            if len(facts) == self.size or n == self.most:
                yield facts
                facts = {}
            if n == self.most:
                return
        if facts:
            yield facts

    def _examined(self, number: int) -> TokenizedFact | None:
        """The fact as tokens if it can be traced; what earlier runs found is not asked again."""
        entry = self.manifest.facts[number]
        if entry.status == "left out":
            return None
        if entry.status != "not reached":
            return entry.fact.preflight(self.model, warn=False)
        self.steps.set_postfix_str(f"asking {entry.fact.subject}"[:24])
        tokenized, reason = usable(self.model, entry.fact, self.plan, self.known_only)
        self.manifest.mark(number, "left out" if tokenized is None else "waiting", reason)
        return tokenized

    def _trace(self, facts: dict[int, TokenizedFact]) -> None:
        """Traces every batch that is not whole; the files of a batch are written in the order of its facts."""
        batches = batches_of(self.model, facts, self.plan)
        missing = [batch for batch in batches if not all(map(self._is_there, batch))]
        self.steps.update(len(facts) - sum(map(len, missing)))
        if missing:
            self.manifest.note_software(software())
            self.manifest.save(self.folder)
        for at, found in self.team.answers([[facts[number] for number in batch] for batch in missing]):
            for number, result in zip(missing[at], found, strict=True):
                self._keep(number, result)
                self.steps.update()
        for batch in batches:
            self._confirm(batch)

    def _keep(self, number: int, result: Any) -> None:
        if isinstance(result, str):
            self.manifest.mark(number, "failed", result)
            self.manifest.save(self.folder)
        else:
            result.save(Study.path_in(self.folder, number))

    def _confirm(self, batch: Batch) -> None:
        for number in batch:
            if self.manifest.facts[number].status != "failed":
                self.manifest.mark(number, "traced")

    def _is_there(self, number: int) -> bool:
        """Whether the fact needs no tracing: its file is whole, or it is known to fail."""
        if self.manifest.facts[number].status == "failed":
            return True
        try:
            Study.load_in(self.folder, number)
        except FileFormatError:
            return False
        return True


def _narrow(study: Study, until_ci: float) -> bool:
    """Whether every map's interval at its own peak is narrower than ± `until_ci`."""
    if len(study.manifest.numbers("traced")) < 2:
        return False
    peaks = [study.average.peak(kind)[2] for kind in study.average.effects]
    return all(1.96 * estimate.standard_error < until_ci for estimate in peaks)
