"""Readers of published benchmarks: CounterFact, its flat form, and zsRE in both of its protocols.

zsRE records hold true answers and a false one. The protocol of ROME and MEMIT teaches the first true
answer; that of the surveys writes `alt`, the false one. The benchmark's `target` says which was taken.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from editing.errors import EvaluationError, RequestError
from editing.evaluation.case import Ask, Case, Group
from editing.request import EditRequest
from tracer.facts.bundled import filled
from tracer.facts.readers import read_records

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """Cases of one file.

    Attributes:
        name: of the protocol.
        target: the field that the edits write.
        sha256: of the file.
        left_out: why records of the slice are no cases, and how many.
    """

    name: str
    target: str
    cases: tuple[Case, ...]
    sha256: str = ""
    left_out: Mapping[str, int] = field(default_factory=dict)


def read_benchmark(
    path: str | Path, *, n: int | None = None, evenly: bool = False, protocol: str | None = None
) -> Benchmark:
    """The cases of a CounterFact, flat CounterFact or zsRE file, also gzipped.

    Args:
        path: a JSON array or JSON lines; the format is told by its fields.
        n: how many records; None: all.
        evenly: draw them evenly over the file, not from its beginning (as papers do).
        protocol: of a zsRE file: "zsre" (ROME and MEMIT: the true answer) or "zsre-survey" (the false one).

    Raises:
        FileFormatError: missing, or not JSON.
        EvaluationError: another format, a record without a field it needs, or no case left.
    """
    records = read_records(path)
    name = _protocol(path, records, protocol)
    target, reader = PROTOCOLS[name]
    step = max(1, len(records) // n) if n and evenly else 1
    cases, left_out = [], Counter()
    for number, record in enumerate(records[::step][:n]):
        try:
            case = reader(record, str(record.get("case_id", number * step)))
        except (KeyError, TypeError, IndexError) as error:
            raise EvaluationError(f"{path}, record {number * step}: no {error} for {name}.") from error
        if isinstance(case, str):
            left_out[case] += 1
        else:
            cases.append(case)
    if not cases:
        raise EvaluationError(f"{path} holds no case for {name}: {dict(left_out) or 'it is empty'}.")
    repeated = [label for label, count in Counter(case.id for case in cases).items() if count > 1]
    if repeated:
        raise EvaluationError(f"{path} has several records with case_id {', '.join(repeated[:5])}. Give each its own.")
    return Benchmark(name, target, tuple(cases), hashlib.sha256(Path(path).read_bytes()).hexdigest(), dict(left_out))


def counterfact_case(record: Record, label: str) -> Case:
    """A CounterFact record (Meng et al. 2022): both targets compete on every prompt."""
    rewrite = record["requested_rewrite"]
    new, true = rewrite["target_new"]["str"], rewrite["target_true"]["str"]
    prompt = filled(rewrite["prompt"], rewrite["subject"])
    topic = rewrite.get("relation_id"), rewrite["target_new"].get("id")
    request, refused = _request(lambda: EditRequest.from_counterfact({**record, "case_id": label}))
    groups = (
        _group("rewrite", [prompt], new, true),
        _group("paraphrase", record.get("paraphrase_prompts", ()), new, true),
        _group("neighborhood", record.get("neighborhood_prompts", ()), true, new, stays=True),
    )
    samples = tuple(record.get("generation_prompts", ()))
    return Case(label, request, groups, samples, topic if all(topic) else None, refused)


def flat_case(record: Record, label: str) -> Case:
    """A record of CounterFact's flat edition (Yao et al. 2023): one paraphrase, one neighbour."""
    prompt, new, true = record["prompt"], record["target_new"], record["ground_truth"]
    request, refused = _request(lambda: EditRequest(prompt, record["subject"], new, true, label))
    groups = (
        _group("rewrite", [prompt], new, true),
        _group("paraphrase", [record["rephrase_prompt"]], new, true),
        _group("neighborhood", [record["locality_prompt"]], record["locality_ground_truth"], new, stays=True),
    )
    return Case(label, request, groups, refused=refused)


def zsre_case(record: Record, label: str) -> Case:
    """A zsRE record in the protocol of ROME and MEMIT: write `answers[0]`; the neighbour is a full question."""
    question = record["loc"] if record["loc"].rstrip().endswith("?") else f"{record['loc']}?"
    return _question_case(record, label, record["answers"][0], question)


def survey_case(record: Record, label: str) -> Case | str:
    """A zsRE record in the protocol of the surveys: write `alt`; a record without it is left out."""
    if not (record["alt"] or "").strip():
        return "alt is empty"
    return _question_case(record, label, record["alt"], record["loc"])


PROTOCOLS: Mapping[str, tuple[str, Callable[[Record, str], Case | str]]] = {
    "counterfact": ("target_new", counterfact_case),
    "counterfact-flat": ("target_new", flat_case),
    "zsre": ("answers[0]", zsre_case),
    "zsre-survey": ("alt", survey_case),
}


def _question_case(record: Record, label: str, answer: str, neighbour: str) -> Case:
    request, refused = _request(lambda: EditRequest(record["src"], record["subject"], answer.strip(), id=label))
    groups = (
        _group("rewrite", [record["src"]], answer),
        _group("paraphrase", [record["rephrase"]], answer),
        _group("neighborhood", [neighbour], record["loc_ans"], stays=True),
    )
    return Case(label, request, groups, refused=refused)


def _group(name: str, prompts: Sequence[str], target: str, other: str | None = None, *, stays: bool = False) -> Group:
    asks = tuple(Ask(prompt, target.strip(), None if other is None else other.strip()) for prompt in prompts)
    return Group(name, asks, stays)


def _request(make: Callable[[], EditRequest]) -> tuple[EditRequest | None, str]:
    """The request, or why it cannot be made."""
    try:
        return make(), ""
    except RequestError as error:
        return None, str(error)


def _protocol(path: str | Path, records: Sequence[Record], chosen: str | None) -> str:
    """The protocol asked for if the file's fields fit it, else the one that they tell."""
    fields = set(records[0]) if records and isinstance(records[0], Mapping) else set()
    fitting = [
        *(["counterfact"] if "requested_rewrite" in fields else []),
        *(["counterfact-flat"] if {"locality_prompt", "target_new"} <= fields else []),
        *(["zsre", "zsre-survey"] if {"src", "loc", "loc_ans"} <= fields else []),
    ]
    if not fitting or chosen not in (None, *fitting):
        known = ", ".join(PROTOCOLS)
        asked = f"does not fit {chosen!r}" if chosen else "is of no known format"
        raise EvaluationError(
            f"{path} {asked}: its records have {', '.join(sorted(fields)) or 'no fields'}. Known protocols: {known}."
        )
    return chosen or fitting[0]
