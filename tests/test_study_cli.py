"""The commands about studies, end to end on a tiny model."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from tracer.cli import app
from tracer.facts import bundled, spread_over_relations

FACTS = [dataclasses.replace(fact, answer=None) for fact in spread_over_relations(bundled())[:4]]
WRONG = dataclasses.replace(FACTS[0], answer="Xyzzy")


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[object], Result]:
    """A study's folder, the command that makes it, and what it said."""
    folder = tmp_path_factory.mktemp("study")
    lines = [json.dumps(dataclasses.asdict(fact)) for fact in [*FACTS, WRONG]]
    (folder / "facts.jsonl").write_text("\n".join(lines))
    arguments: list[object] = ["study", folder / "facts.jsonl", "--model", model_folder, "--quiet", "--window", 2]
    arguments += ["--samples", 2, "--out", folder / "run"]
    return folder / "run", arguments, command(*arguments)


def test_study_says_what_became_of_the_facts_and_goes_on_where_it_was(run) -> None:
    folder, arguments, said = run
    assert said.exit_code == 0, said.output
    assert "4 traced, 1 left out" in said.stdout and "would narrow it" in said.stdout
    table = pd.read_csv(folder / "average.csv")
    assert {"bootstrap_low", "bootstrap_high", "low", "high"} <= set(table.columns) and set(table.n) <= {1, 2, 3, 4}
    before = {path: path.stat().st_mtime_ns for path in (folder / "facts").iterdir()}
    again = command(*arguments, "--json")
    record = json.loads(again.stdout)
    assert record["facts"] == {"traced": 4, "left out": 1} and record["left_out"][0][0] == WRONG.prompt
    assert before == {path: path.stat().st_mtime_ns for path in (folder / "facts").iterdir()}


def test_groups_peak_where_the_metric_is_nearest_to_the_clean_run(model_folder: Path, tmp_path: Path) -> None:
    fact = ["--prompt", FACTS[0].prompt, "--subject", FACTS[0].subject, "--model", model_folder, "--quiet"]
    for metric, best in (("kl", "idxmin"), ("logit", "idxmax")):
        options = ["--metric", metric, "--groups", "subject", "--kinds", "mlp", "--window", 1, "--samples", 2]
        said = command("trace", *fact, *options, "--out", tmp_path / metric)
        table = pd.read_csv(tmp_path / metric / "groups.csv")
        row = table.loc[getattr(table.indirect_effect, best)()]
        assert f"IE {row.indirect_effect:+.3f} at layer {row.layer}, subject together" in said.stdout
        assert "p(clean)" not in said.stdout


def test_a_role_of_one_fact_is_no_peak_and_has_no_components(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "facts.jsonl").write_text("\n".join(json.dumps(dataclasses.asdict(fact)) for fact in FACTS[:2]))
    said = command("study", tmp_path / "facts.jsonl", "--model", model_folder, "--quiet", "--window", 2,
                   "--samples", 2, "--out", tmp_path / "run")  # fmt: skip
    assert said.exit_code == 0 and "(n=1)" not in said.stdout, said.output


def test_another_setting_in_the_same_folder_is_one_line_and_code_2(run) -> None:
    _, arguments, _ = run
    said = command(*arguments, "--seed", 5)
    assert said.exit_code == 2
    assert "StudyError" in said.stderr and "settings.plan.seed: 1 there, 5 now" in said.stderr


def test_a_study_that_traced_nothing_is_an_error_that_says_why(run) -> None:
    folder, arguments, _ = run
    nowhere = command(*arguments[:-1], folder.parent / "nowhere", "--all-facts", "--groups", "99")
    assert nowhere.exit_code == 2 and "average.csv" not in nowhere.stdout
    assert "5 facts were left out" in nowhere.stderr and "not 99" in nowhere.stderr
    assert "--all-facts" not in nowhere.stderr
    (folder.parent / "unknown.jsonl").write_text(json.dumps(dataclasses.asdict(WRONG)))
    unknown = command("study", folder.parent / "unknown.jsonl", *arguments[2:-1], folder.parent / "unknown")
    assert unknown.exit_code == 2 and "--all-facts" in unknown.stderr


def test_paired_compare_locate_and_report_read_the_folder(run, tmp_path: Path) -> None:
    folder, _, _ = run
    tests = command(
        "paired", folder, "--first", "state", "--second", "state | mlp severed", "--out", tmp_path / "t.csv"
    )
    assert tests.exit_code == 0 and "p_holm" in tests.stdout
    assert {"p", "p_holm", "low", "high"} <= set(pd.read_csv(tmp_path / "t.csv").columns)
    both = command("compare", folder, folder, "--json")
    assert both.exit_code == 2 and "two studies or more" in both.stderr  # one name for both
    place = command("locate", folder)
    assert place.exit_code == 0 and "behind_low" in place.stdout and "layer" in place.stdout
    own = command("locate", folder, "--window", 3)
    assert own.exit_code == 2 and "A saved average has its own window" in own.stderr
    page = command("report", folder, "--out", tmp_path / "page.html", "--json")
    assert page.exit_code == 0 and json.loads(page.stdout)["files"] == [str(tmp_path / "page.html")]
    assert (tmp_path / "page.html").stat().st_size > 1_000_000


def test_two_studies_stand_side_by_side(run, model_folder: Path, tmp_path: Path) -> None:
    folder, arguments, _ = run
    other = command(*arguments[:-1], tmp_path / "other", "--seed", 2)
    assert other.exit_code == 0, other.output
    logit = command(
        *arguments[:-1], tmp_path / "logit", "--metric", "logit", "--corruption", "mean", "--kinds", "state"
    )
    assert logit.exit_code == 0, logit.output
    page = command("report", folder, tmp_path / "logit", "--out", tmp_path / "page.html")
    assert page.exit_code == 0 and "the answer's logit" in (tmp_path / "page.html").read_text(encoding="utf-8")
    said = command("compare", folder, tmp_path / "other", "--json")
    peaks = json.loads(said.stdout)["peaks"]
    assert {"run.layer", "run.depth", "other.layer", "other.low"} <= set(peaks[0])


def test_a_folder_without_a_study_is_said_to_have_none(tmp_path: Path) -> None:
    said = command("report", tmp_path)
    assert said.exit_code == 2 and "There is no manifest.json" in said.stderr
