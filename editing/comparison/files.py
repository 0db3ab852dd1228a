"""The data files of a comparison, each by the name that tables give it: benchmarks, and MQuAKE's."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from editing.datasets.benchmarks import BENCHMARKS, Benchmark, fitting_benchmarks, read_benchmark
from editing.datasets.case import Ask
from editing.datasets.mquake import HopBenchmark, is_mquake, read_hops
from editing.errors import EditingWarning, EvaluationError
from tracer.facts.readers import read_records


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How data files are read.

    Attributes:
        n: records of each file; None: all.
        evenly: draw them evenly over the file.
        benchmark: of those files that it fits.
        together: some cases will be edited together.
        groups: kinds of prompts asked; empty: all.
        choices: questions of another task, of which `choices_a_case` are asked with each case.
        hops_together: cases of MQuAKE whose edits live together.
    """

    n: int | None = None
    evenly: bool = False
    benchmark: str | None = None
    together: bool = False
    groups: Sequence[str] = ()
    choices: Sequence[Ask] = ()
    choices_a_case: int = 1
    hops_together: int = 1

    def file(self, path: Path) -> Benchmark | HopBenchmark:
        """The cases of one file."""
        if is_mquake(path):
            return read_hops(path, n=self.n, evenly=self.evenly, together=self.hops_together)
        fits = self.benchmark in fitting_benchmarks(read_records(path))
        benchmark = self.benchmark if fits else None
        one = read_benchmark(path, n=self.n, evenly=self.evenly, benchmark=benchmark, together=self.together)
        one = one.only(self.groups) if self.groups else one
        return one.asking(self.choices, self.choices_a_case) if self.choices else one


def read_files(
    paths: Sequence[Path], reading: Reading, *, not_of_hops: Sequence[str] = ()
) -> dict[str, Benchmark | HopBenchmark]:
    """The cases of every file, by its name.

    Args:
        paths: of the files.
        reading: how they are read.
        not_of_hops: options that were given and say nothing about MQuAKE's cases, as the user wrote them.

    Raises:
        EvaluationError: two files of one name, a benchmark that there is not, or options that apply to no file.
    """
    if reading.benchmark not in (None, *BENCHMARKS):
        raise EvaluationError(f"There is no benchmark {reading.benchmark!r}. Choose from {', '.join(BENCHMARKS)}.")
    files: dict[str, Benchmark | HopBenchmark] = {}
    for path in paths:
        name = path.name.split(".json")[0]
        if name in files:
            raise EvaluationError(f"Two files are called {name}. Rename one: tables name them so.")
        files[name] = reading.file(path)
    if reading.benchmark and reading.benchmark not in {one.name for one in files.values()}:
        raise EvaluationError(f"No file can be read as {reading.benchmark}. Leave the benchmark out, or name its file.")
    hops = [name for name, one in files.items() if isinstance(one, HopBenchmark)]
    if hops and not_of_hops:
        _tell_apart(hops, not_of_hops, others=len(files) > len(hops))
    return files


def _tell_apart(hops: Sequence[str], options: Sequence[str], *, others: bool) -> None:
    said = (
        f"{', '.join(options)}: this does not apply to {', '.join(hops)}. MQuAKE's cases have a protocol of their own: "
        f"all edits of --together cases are written at once, and every question is asked."
    )
    if not others:
        raise EvaluationError(f"{said} Leave it out.")
    warnings.warn(said, EditingWarning, stacklevel=3)
