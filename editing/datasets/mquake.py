"""MQuAKE's records: edits, and a question of several hops whose answer follows from them.

(Zhong et al. 2023, arXiv:2305.14795)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from editing.datasets.slices import chosen_numbers, slice_in_words
from editing.errors import EvaluationError, RequestError
from editing.request import EditRequest, FactName
from tracer.facts.readers import read_records
from tracer.storage import file_sha256


@dataclass(frozen=True)
class Question:
    """One question in one or more phrasings, with every answer that is right."""

    phrasings: tuple[str, ...]
    right: tuple[str, ...]


@dataclass(frozen=True)
class MultiHop:
    """One case.

    Attributes:
        requests: its edits.
        question: with its answer once they are made.
        hops: of that answer, each by itself; empty where the file has none.
        before: the question with its answer without edits, if the file has it.
    """

    id: str
    requests: tuple[EditRequest, ...]
    question: Question
    hops: tuple[Question, ...] = ()
    before: Question | None = None


@dataclass(frozen=True)
class HopBenchmark:
    """Cases of an MQuAKE file.

    Attributes:
        slice: which of the file's records were read.
        together: cases whose edits live together.
    """

    cases: tuple[MultiHop, ...]
    sha256: str
    slice: str
    together: int = 1
    name: str = "mquake"
    target: str = "target_new"


def is_mquake(path: str | Path) -> bool:
    """Whether a file's records are MQuAKE's."""
    records = read_records(path)
    return bool(records) and isinstance(records[0], dict) and {"questions", "new_answer"} <= set(records[0])


def read_hops(path: str | Path, *, n: int | None = None, evenly: bool = False, together: int = 1) -> HopBenchmark:
    """The first `n` cases of an MQuAKE file, or as many evenly over it (see `read_mquake`)."""
    cases = read_mquake(path, n=n, evenly=evenly)
    said = slice_in_words(len(read_records(path)), n, len(cases), evenly=evenly)
    return HopBenchmark(cases, file_sha256(path), said, together)


def read_mquake(path: str | Path, *, n: int | None = None, evenly: bool = False) -> tuple[MultiHop, ...]:
    """The cases of an MQuAKE file, also gzipped; of its reduced form too, which has edits and questions alone.

    Raises:
        FileFormatError: missing, or not JSON.
        EvaluationError: a record without a field it needs, with something else in it, or with the id of another
            one; or no record.
    """
    records, cases = read_records(path), []
    for number in chosen_numbers(len(records), n, evenly=evenly):
        record = records[number]
        try:
            cases.append(_whole(record) if "requested_rewrite" in record else _reduced(record))
        except KeyError as error:
            raise EvaluationError(f"{path}, record {number}: no {error} for MQuAKE.") from error
        except (TypeError, AttributeError, RequestError) as error:
            raise EvaluationError(f"{path}, record {number}, is no case of MQuAKE: {error}") from error
    if not cases:
        raise EvaluationError(f"{path} holds no case.")
    twice = [name for name, times in Counter(case.id for case in cases).items() if times > 1]
    if twice:
        raise EvaluationError(f"{path} has several cases with case_id {twice[0]}: one would get the other's scores.")
    return tuple(cases)


def names_no_subject(case: MultiHop) -> bool:
    """Whether its file has edits without subjects, for which their whole prompts stand."""
    return any(request.subject == request.prompt for request in case.requests)


def without_repeats(cases: Sequence[MultiHop]) -> list[EditRequest]:
    """The edits of these cases, the first of each fact."""
    known: set[FactName] = set()
    first = []
    for request in (request for case in cases for request in case.requests):
        if known.isdisjoint(request.fact_names):
            first.append(request)
            known.update(request.fact_names)
    return first


def _listed(record: Mapping[str, Any], field: str, *, least: int = 0) -> list[Any]:
    """A field that is a list; TypeError where it is not, or shorter than this."""
    found = record[field]
    if not isinstance(found, list) or len(found) < least:
        raise TypeError(f"{field!r} is {found!r}, not a list" + (f" of {least} or more." if least else "."))
    return found


def _whole(record: Mapping[str, Any]) -> MultiHop:
    requests = tuple(
        EditRequest(
            one["prompt"], one["subject"], one["target_new"]["str"], one["target_true"]["str"], None, one["relation_id"]
        )
        for one in _listed(record, "requested_rewrite", least=1)
    )
    phrasings = tuple(_listed(record, "questions", least=1))
    hops = tuple(
        Question((hop["question"],), (hop["answer"], *_listed(hop, "answer_alias")))
        for hop in _listed(record, "new_single_hops")
    )
    right = (record["new_answer"], *_listed(record, "new_answer_alias"))
    before = Question(phrasings, (record["answer"], *_listed(record, "answer_alias")))
    return MultiHop(str(record["case_id"]), requests, Question(phrasings, right), hops, before)


def _reduced(record: Mapping[str, Any]) -> MultiHop:
    """Its edits name no subject: the whole prompt stands for it, which is enough for editors that need none."""
    edits = _listed(record, "edits", least=1)
    requests = tuple(EditRequest(one["prompt"], one["prompt"], one["target_new"]) for one in edits)
    right = (record["new_answer"], *_listed(record, "new_answer_alias"))
    return MultiHop(str(record["case_id"]), requests, Question(tuple(_listed(record, "questions", least=1)), right))
