"""Readers of published benchmarks: CounterFact, its flat form, zsRE in both of its uses, and KnowEdit.

zsRE records hold true answers and a false one. The protocol of ROME and MEMIT teaches the first true
answer; that of the surveys writes `alt`, the false one. The benchmark's `target` says which was taken.
A record with fields for portability or side effects gets groups of prompts for them, beside the usual ones.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from editing import published
from editing.datasets.case import Ask, Case, Group
from editing.datasets.choices import with_choices
from editing.datasets.portability import FOLLOWING, knowedit_groups, portability_groups, side_effect_groups
from editing.datasets.slices import chosen_numbers, slice_in_words
from editing.errors import EvaluationError, RequestError
from editing.published import Published
from editing.request import EditRequest, FactName
from tracer.facts.readers import read_records
from tracer.storage import file_sha256

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """Cases of one file.

    Attributes:
        name: of the benchmark.
        target: the field that the edits write.
        sha256: of the file.
        slice: which of the file's records were read.
        left_out: why records of the slice are no cases, and how many.
    """

    name: str
    target: str
    cases: tuple[Case, ...]
    sha256: str = ""
    slice: str = ""
    left_out: Mapping[str, int] = field(default_factory=dict)

    def only(self, groups: Collection[str]) -> Benchmark:
        """The same cases with these groups of prompts alone.

        Raises:
            EvaluationError: a group that no case has.
        """
        there = {group.name for case in self.cases for group in case.groups if group.asks}
        missing = [name for name in groups if name not in there]
        if missing or not groups:
            said = ", ".join(missing) or "of no kind"
            raise EvaluationError(f"{self.name} has no prompts {said}. It has {', '.join(sorted(there))}.")
        cases = [
            dataclasses.replace(case, groups=tuple(group for group in case.groups if group.name in groups))
            for case in self.cases
        ]
        return dataclasses.replace(self, cases=tuple(cases))

    def asking(self, choices: Sequence[Ask], each: int) -> Benchmark:
        """The same cases with `each` questions of another task a case (see `with_choices`)."""
        return dataclasses.replace(self, cases=tuple(with_choices(self.cases, choices, each)))


def read_benchmark(
    path: str | Path,
    *,
    n: int | None = None,
    evenly: bool = False,
    benchmark: str | None = None,
    together: bool = False,
) -> Benchmark:
    """The cases of a CounterFact, flat CounterFact, zsRE or KnowEdit file, also gzipped.

    Args:
        path: a JSON array or JSON lines; the format is told by its fields.
        n: how many records; None: all.
        evenly: draw them evenly over the file, not from its beginning (as papers do).
        benchmark: of a zsRE file: "zsre" (ROME and MEMIT: the true answer) or "zsre-survey" (the false one).
        together: the cases will be edited together: a record that edits a fact again is left out, and the next one
            of the file takes its place.

    Raises:
        FileFormatError: missing, or not JSON.
        EvaluationError: another format, a record without a field it needs, or no case left.
    """
    records = read_records(path)
    name = _benchmark(path, records, benchmark)
    numbers = chosen_numbers(len(records), n, evenly=evenly)
    spare = sorted(set(range(len(records))) - set(numbers)) if together else []
    read, cases, left_out = 0, [], Counter()
    facts: set[FactName] = set()
    for number in (*numbers, *spare):
        if read == len(numbers):
            break
        case = _read(path, number, records[number], name)
        if together and isinstance(case, Case) and case.request is not None:
            if not facts.isdisjoint(case.request.fact_names):
                left_out["edits a fact of an earlier record again"] += 1
                continue
            facts.update(case.request.fact_names)
        read += 1
        if isinstance(case, str):
            left_out[case] += 1
        else:
            cases.append(case)
    if not cases:
        raise EvaluationError(f"{path} holds no case for {name}: {dict(left_out) or 'it is empty'}.")
    repeated = [label for label, count in Counter(case.id for case in cases).items() if count > 1]
    if repeated:
        raise EvaluationError(f"{path} has several records with case_id {', '.join(repeated[:5])}. Give each its own.")
    digest = file_sha256(path)
    said = slice_in_words(len(records), n, read, evenly=evenly)
    return Benchmark(name, BENCHMARKS[name][0], tuple(cases), digest, said, dict(left_out))


def _read(path: str | Path, number: int, record: Record, benchmark: str) -> Case | str:
    """The case of a record, or why it is none."""
    with _naming(f"{path}, record {number}", benchmark):
        return BENCHMARKS[benchmark][1](record, str(record.get("case_id", number)))


@contextmanager
def _naming(where: str, benchmark: str) -> Iterator[None]:
    """Names the record whose fields are not those of the benchmark."""
    try:
        yield
    except KeyError as error:
        raise EvaluationError(f"{where}: no {error} for {benchmark}.") from error
    except (RequestError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise EvaluationError(f"{where} is none of {benchmark}: {error}.") from error


def counterfact_cases(records: Sequence[Record]) -> list[Case]:
    """The cases of CounterFact records, each with its case_id or its place as its label.

    Raises:
        EvaluationError: one of another format, or without an answer to write.
    """
    cases = []
    for number, record in enumerate(records):
        with _naming(f"Record {number}", "counterfact"):
            case = counterfact_case(record, str(record.get("case_id", number)))
        if isinstance(case, str):
            raise EvaluationError(f"Record {number} is no case: {case}.")
        cases.append(case)
    return cases


def counterfact_case(record: Record, label: str) -> Case | str:
    """A CounterFact record (Meng et al. 2022): both targets compete on every prompt."""
    read = published.counterfact(record)
    new = record["requested_rewrite"]["target_new"].get("id")
    topic = (read.relation, new) if read.relation and new else None
    return _case(read, record, label, published.texts(record, "generation_prompts"), topic)


def flat_case(record: Record, label: str) -> Case | str:
    """A record of CounterFact's flat edition (Yao et al. 2023): one paraphrase, one neighbour."""
    return _case(published.flat(record), record, label)


def zsre_case(record: Record, label: str) -> Case | str:
    """A zsRE record in the protocol of ROME and MEMIT: write `answers[0]`; the neighbour is a full question."""
    question, answers = published.text(record, "loc"), published.texts(record, "answers")
    question = question if question.rstrip().endswith("?") else f"{question}?"
    return _case(published.zsre({**record, "loc": question}, answers[0] if answers else ""), {}, label)


def survey_case(record: Record, label: str) -> Case | str:
    """A zsRE record in the protocol of the surveys: write `alt`; a record without it is left out."""
    alt = published.text({**record, "alt": record["alt"] or ""}, "alt")
    return _case(published.zsre(record, alt), record, label) if alt.strip() else "alt is empty"


def knowedit_case(record: Record, label: str) -> Case | str:
    """A KnowEdit record (Zhang et al. 2024): its kinds of portability and locality are groups."""
    case = _case(published.knowedit(record), {}, label)
    if isinstance(case, str):
        return case
    return dataclasses.replace(case, groups=(*case.groups, *knowedit_groups(record)))


BENCHMARKS: Mapping[str, tuple[str, Callable[[Record, str], Case | str]]] = {
    "counterfact": ("target_new", counterfact_case),
    "counterfact-flat": ("target_new", flat_case),
    "zsre": ("answers[0]", zsre_case),
    "zsre-survey": ("alt", survey_case),
    "knowedit": ("target_new", knowedit_case),
}


def _case(
    read: Published,
    record: Record,
    label: str,
    samples: tuple[str, ...] = (),
    topic: tuple[str, str] | None = None,
) -> Case | str:
    """The three groups that every format has, then those of the further fields of this record; or why it is no case."""
    new, true = read.new, read.true
    if not new:
        return "the answer to write is empty"
    neighbours = tuple(Ask(prompt, answer, new if true else None) for prompt, answer in read.neighbours if answer)
    groups = (
        Group("rewrite", (Ask(read.prompt, new, true or None),)),
        Group("paraphrase", tuple(Ask(prompt, new, true or None) for prompt in read.paraphrases if prompt.strip())),
        Group("neighborhood", neighbours, stays=True),
        *portability_groups(record, read),
        *side_effect_groups(record, read),
    )
    try:
        request = EditRequest(read.prompt, read.subject, new, true, label, read.relation, read.subject_at)
    except RequestError as error:
        return Case(label, None, groups, samples, topic, refused=str(error))
    return Case(label, request, groups, samples, topic)


def fitting_benchmarks(records: Sequence[Record]) -> list[str]:
    """The benchmarks that records with these fields can be read by, the file's own first."""
    first = records[0] if records and isinstance(records[0], Mapping) else {}
    fields = set(first)
    whole = isinstance(first.get("requested_rewrite"), Mapping)  # MQuAKE has a list there
    follows = fields & FOLLOWING  # answers to these build on the false answer
    return [
        *(["counterfact"] if whole else []),
        *(["counterfact-flat"] if {"locality_prompt", "target_new"} <= fields else []),
        *(["zsre"] if {"src", "answers", "loc"} <= fields and not follows else []),
        *(["zsre-survey"] if {"src", "alt"} <= fields and ("loc" in fields or follows) else []),
        *(["knowedit"] if {"target_new", "portability", "locality"} <= fields else []),
    ]


def _benchmark(path: str | Path, records: Sequence[Record], chosen: str | None) -> str:
    """The benchmark asked for if the file's fields fit it, else the one that they tell."""
    fitting = fitting_benchmarks(records)
    if fitting and chosen in (None, *fitting):
        return chosen or fitting[0]
    fields = sorted(records[0]) if records and isinstance(records[0], Mapping) else []
    asked = f"does not fit {chosen!r}" if chosen else "is of no known format"
    raise EvaluationError(
        f"{path} {asked}: its records have {', '.join(fields) or 'no fields'}. Known: {', '.join(BENCHMARKS)}."
    )
