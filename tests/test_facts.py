"""Bundled facts are many, whole and without repeats; published files are read as they are."""

from __future__ import annotations

import gzip
import json
from collections import Counter

import pytest

from tracer.errors import FactError, FileFormatError
from tracer.fact import Fact
from tracer.facts import bundled, counterfact, known_facts, paraphrases, read_facts, relation_of, spread_over_relations
from tracer.facts.bundled import filled, templates


def test_there_are_enough_facts_of_enough_relations() -> None:
    count = Counter(fact.relation for fact in bundled())
    assert len(bundled()) >= 300 and len(count) >= 12
    assert min(count.values()) >= 15
    assert len({fact.prompt for fact in bundled()}) == len(bundled())


def test_every_fact_is_said_by_a_template_of_its_relation() -> None:
    for fact in bundled():
        assert fact.prompt in [filled(template, fact.subject) for template in templates()[fact.relation]]
        assert fact.answer and fact.answer == fact.answer.strip() and fact.prompt == fact.prompt.strip()
        assert fact.prompt.count(fact.subject) == 1


def test_paraphrases_say_the_same_relation_in_other_words() -> None:
    ways = paraphrases("The Space Needle is located in the city of", "The Space Needle")
    assert len(ways) >= 3 and all("The Space Needle" in way for way in ways)
    assert relation_of(ways[0], "The Space Needle") == "city of a landmark"
    assert paraphrases("The Space Needle tastes of", "The Space Needle") == []


def test_braces_in_a_subject_stay() -> None:
    assert filled("{} is a piece of", "{x} 100%") == "{x} 100% is a piece of"


def test_the_first_facts_cover_all_relations() -> None:
    spread = spread_over_relations(bundled())
    n = len(templates())
    assert len({fact.relation for fact in spread[:n]}) == n
    assert sorted(spread, key=str) == sorted(bundled(), key=str)


def test_an_unknown_relation_lists_those_there_are() -> None:
    with pytest.raises(FactError, match="capital of a country"):
        bundled("colour of the sky")


KNOWN = {
    "known_id": 0,
    "subject": "Vinson Massif",
    "attribute": "Antarctica",
    "template": "{} is located in the continent",
    "prediction": " of Antarctica.",
    "prompt": "Vinson Massif is located in the continent of",
    "relation_id": "P30",
}
COUNTERFACT = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "Paris, {} speaks",
        "subject": "Paris",
        "relation_id": "P1",
        "target_new": {"str": "English"},
        "target_true": {"str": "French"},
    },
}


@pytest.mark.parametrize("suffix", ["json", "json.gz", "jsonl"])
def test_published_files_are_recognised(tmp_path, suffix: str) -> None:
    def write(record: dict):
        path = tmp_path / f"facts.{suffix}"
        text = json.dumps(record) if suffix == "jsonl" else json.dumps([record])
        path.write_bytes(gzip.compress(text.encode()) if suffix.endswith("gz") else text.encode())
        return path

    (known,) = read_facts(write(KNOWN))
    assert (known.prompt, known.answer) == (KNOWN["prompt"], "Antarctica")
    assert known_facts(write(KNOWN)) == [known]
    (counter,) = read_facts(write(COUNTERFACT))
    assert (counter.prompt, counter.answer, counter.subject_at) == ("Paris, Paris speaks", "French", 7)
    assert counterfact(write(COUNTERFACT)) == [counter]
    assert counter.other == COUNTERFACT["requested_rewrite"]["target_new"]["str"]
    ours = {"prompt": "Paris is in", "subject": "Paris", "answer": "France", "other": "Chile", "subject_at": 0}
    assert read_facts(write(ours)) == [Fact(**ours)]


def test_damaged_files_say_where(tmp_path) -> None:
    path = tmp_path / "facts.json"
    path.write_text('[{"prompt": "France is"}]', encoding="utf-8")
    with pytest.raises(FileFormatError, match="record 0: no field 'subject'"):
        read_facts(path)
    path.write_text('[{"prompt": "France is", "subject": "France"}, 3]', encoding="utf-8")
    with pytest.raises(FileFormatError, match="record 1: 3 is not an object with a prompt"):
        read_facts(path)
    path.write_text('[{"prompt": ', encoding="utf-8")
    with pytest.raises(FileFormatError, match="no whole JSON"):
        read_facts(path)
