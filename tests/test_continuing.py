"""Folders that are gone on with: what differs is named, what a file alone has may be anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracer.continuing import differences, read_same
from tracer.errors import FileFormatError, StudyError
from tracer.storage import write_json

THERE = {"model": "tiny", "plan": {"window": 10, "kinds": ["mlp"]}, "versions": [1]}


def same(path: Path, now: dict, **options) -> dict | None:
    return read_same(path, now, what="study", error=StudyError, **options)


def test_only_values_that_differ_are_named_by_their_way_down() -> None:
    now = {"model": "tiny", "plan": {"window": 4, "kinds": ["mlp"], "seed": 1}}
    assert list(differences(THERE["plan"], now["plan"], name="plan")) == [
        "plan.window: 10 there, 4 now",
        'plan.seed: "absent" there, 1 now',
    ]
    assert list(differences(THERE, now, but=["plan.window", "plan.seed", "versions"])) == []
    assert list(differences("x" * 80, "y")) == [f': "{"x" * 55}... there, "y" now']


def test_what_the_file_alone_says_may_be_anything_and_what_is_said_now_may_not(tmp_path: Path) -> None:
    path = tmp_path / "run" / "about.json"
    assert same(path, THERE) is None
    write_json(path, THERE)
    assert same(path, {"model": "tiny"}) == THERE == same(path, {"model": "other"}, but=["model"])
    with pytest.raises(StudyError, match=r"run holds another study \(plan.window: 10 there, 4 now\).*--out"):
        same(path, {"plan": {"window": 4, "kinds": ["mlp"]}})
    with pytest.raises(StudyError, match=r'seed: "absent" there, 0 now'):
        same(path, {"seed": 0})


@pytest.mark.parametrize("text", ['{"model": ', "[1]"])
def test_a_damaged_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "about.json").write_text(text, encoding="utf-8")
    with pytest.raises(FileFormatError, match="of its own"):
        same(tmp_path / "about.json", THERE)
