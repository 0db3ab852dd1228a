"""The layer check: scores are those of single edits, correlations those of planted editors, files are kept."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import LAYERS
from planted import RECORD, Planted
from typer.testing import CliRunner

import tracer
from editing import ROME, RequestError, check_by_editing
from editing.cli import app
from editing.evaluation import bundled_records, evaluate_counterfact
from editing.evaluation.counterfact import MAGNITUDES, SCORES
from editing.layer_check.plot import plot_check
from tracer.effect import AverageTrace, Settings
from tracer.errors import FactError, SiteError
from tracer.fact import ROLES
from tracer.facts import bundled

pytestmark = pytest.mark.filterwarnings("ignore::editing.EditingWarning", "ignore::tracer.TracerWarning")
BARE = {"case_id": 4, "requested_rewrite": RECORD["requested_rewrite"]}


def louder(by: float) -> Planted:
    """Adds to the logit of the new answer's first token, on every prompt."""
    return Planted({"French": by})


def planted(model: tracer.LanguageModel, aie: list[float], metric: str = "probability") -> AverageTrace:
    """An average over 8 facts with the given AIE by layer, of this model."""
    values = np.full((8, len(ROLES), len(aie)), np.nan)
    values[:, ROLES.index("last subject token")] = aie
    settings = Settings(model.name, model.fingerprint(), 2, 2, 1, "GaussianNoise()", metric=metric)
    return AverageTrace(tuple("abcdefgh"), (), np.full(8, 0.9), np.full(8, 0.1), {"mlp": values}, settings)


def quick(layer: int) -> ROME:
    return ROME(layer=layer, steps=3, context_plan=(), identity=True)


@pytest.mark.parametrize(("metric", "sign"), [("probability", 1), ("kl", -1)])
def test_correlations_are_perfect_where_scores_follow_the_effects(toy_model, metric: str, sign: int) -> None:
    """The louder the new answer, the larger its margin on its own prompts and the smaller that of neighbours."""
    aie = [0.3, 0.1, 0.4, 0.2]
    found = check_by_editing(
        toy_model,
        planted(toy_model, [sign * effect for effect in aie], metric),
        [RECORD],
        editor=lambda layer: louder(10 * aie[layer]),
    )
    assert found.place.layer == 2 and [estimate.mean for estimate in found.effects] == pytest.approx(aie)
    assert found.correlations["efficacy_magnitude"] == found.correlations["paraphrase_magnitude"] == pytest.approx(1)
    assert found.correlations["neighborhood_magnitude"] == pytest.approx(-1)
    assert "over 4 layers, 1 facts: " in str(found) and "efficacy_magnitude +1.00" in str(found)


def test_scores_are_those_of_single_edits_and_the_model_is_the_same_again(toy_model) -> None:
    before = toy_model.fingerprint()
    records = [RECORD, BARE]
    found = check_by_editing(toy_model, planted(toy_model, [0.1] * LAYERS), records, layers=[3, 1], editor=quick)
    assert found.layers == (1, 3) and toy_model.fingerprint() == before and toy_model.edits == []
    for layer in (1, 3):
        for case, single in zip(
            found.cases[layer], evaluate_counterfact(toy_model, quick(layer), records), strict=True
        ):
            assert case.before == single.before and case.after == pytest.approx(single.after, nan_ok=True)
    frame = found.to_frame().set_index("layer")
    ones = [case.after["efficacy_magnitude"] for case in found.cases[3]]
    assert frame.loc[3, "efficacy_magnitude"] == pytest.approx(np.mean(ones))
    assert (
        found.estimates("neighborhood_magnitude")[1].n == 1 and found.estimates("efficacy_magnitude")[1].n == 2
    )  # one record has no neighbours


def test_a_stopped_check_goes_on_where_it_was(toy_model, tmp_path, monkeypatch) -> None:
    average, options = planted(toy_model, [0.1] * LAYERS), {"layers": [0, 2], "editor": quick}
    whole = check_by_editing(toy_model, average, [RECORD, BARE], **options)
    edited, each = [], ROME.each

    def interrupted(self, *arguments, **others):
        if len(edited) == 1:
            raise KeyboardInterrupt
        edited.append(self.layer)
        return each(self, *arguments, **others)

    monkeypatch.setattr(ROME, "each", interrupted)
    with pytest.raises(KeyboardInterrupt):
        check_by_editing(toy_model, average, [RECORD, BARE], folder=tmp_path, **options)
    assert edited == [0] and len(list(tmp_path.rglob("*.json"))) == 2
    edited.clear()
    resumed = check_by_editing(toy_model, average, [RECORD, BARE], folder=tmp_path, **options)
    assert edited == [2]
    np.testing.assert_allclose(resumed.to_frame(), whole.to_frame())
    edited.clear()
    monkeypatch.setattr(ROME, "each", each)
    check_by_editing(toy_model, average, [RECORD, BARE], folder=tmp_path, layers=[0, 2], editor=quick, seed=1)
    assert len(list(tmp_path.rglob("*.json"))) == 8  # other settings, other files


def test_what_compares_nothing_is_refused_before_anything_is_edited(toy_model, linear_model) -> None:
    average = planted(toy_model, [0.1] * LAYERS)
    with pytest.raises(RequestError, match="1 layers and 1 facts compare nothing"):
        check_by_editing(toy_model, average, [RECORD], layers=[2])
    with pytest.raises(SiteError, match="layers 0 to 3"):
        check_by_editing(toy_model, average, [RECORD], layers=[0, 9])
    with pytest.raises(SiteError, match="it has mlp"):
        check_by_editing(toy_model, average, [RECORD], kind="attn")
    with pytest.raises(RequestError, match="of other weights"):
        check_by_editing(linear_model, average, [RECORD])


def test_bundled_records_are_known_facts_with_other_answers_and_neighbours_of_the_old_one(toy_model) -> None:
    facts = [fact for fact in bundled() if fact.relation == "mother tongue of a person"]
    answers = {fact.prompt: fact.answer for fact in bundled()}
    with pytest.raises(FactError, match=r"The model predicts \d+ bundled facts"):
        bundled_records(toy_model, 5000)
    word = toy_model.tokenizer(f" {facts[0].answer}").input_ids[0]
    handle = toy_model.anatomy.head.register_forward_hook(
        lambda _module, _inputs, output: output.index_fill(-1, output.new_tensor([word]).long(), 1e3)
    )
    records = bundled_records(toy_model, 2)
    handle.remove()
    assert len(records) == 2
    for record in records:
        rewrite = record["requested_rewrite"]
        prompt = rewrite["prompt"].replace("{}", rewrite["subject"])
        assert answers[prompt] == rewrite["target_true"]["str"] == facts[0].answer
        assert rewrite["target_new"]["str"] in {fact.answer for fact in bundled(rewrite["relation_id"])} - {
            facts[0].answer
        }
        assert record["paraphrase_prompts"] and prompt not in record["paraphrase_prompts"]
        assert {answers[neighbour] for neighbour in record["neighborhood_prompts"]} == {facts[0].answer}
        assert prompt not in record["neighborhood_prompts"]


def test_the_figure_shows_every_layer_and_says_each_correlation_with_its_n(toy_model) -> None:
    aie = [0.3, 0.1, 0.4, 0.2]
    check = check_by_editing(
        toy_model, planted(toy_model, aie), [RECORD], layers=[0, 1, 3], editor=lambda layer: louder(10 * aie[layer])
    )
    figure = plot_check(check)
    axes = [each for part in figure.subfigs for each in part.axes]
    line, points = axes[0].lines[:2]
    np.testing.assert_allclose(line.get_ydata(), aie)
    assert list(points.get_xdata()) == [0, 1, 3]
    assert [each.get_title() for each in axes[2:]] == [
        "ρ = +1.00, n = 3 layers",
        "ρ = +1.00, n = 3 layers",
        "ρ = -1.00, n = 3 layers",
    ]
    assert [text.get_text() for text in axes[2].texts] == ["0", "1", "3"]
    figure.draw_without_rendering()


def test_check_layers_by_command(model_folder, tmp_path) -> None:
    model = tracer.load(model_folder, device="cpu")
    planted(model, [0.1, 0.3, 0.2, 0.1]).save(tmp_path / "average.safetensors")
    (tmp_path / "records.json").write_text(json.dumps([RECORD]))
    arguments = ["check-layers", tmp_path / "average.safetensors", "--records", tmp_path / "records.json", "--every", 3]
    arguments += ["--model", model_folder, "--out", tmp_path / "out", "--set", "steps=3"]
    result = CliRunner().invoke(app, [str(argument) for argument in [*arguments, "--json"]])
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["located"]["layer"] == 1 and [row["layer"] for row in record["layers"]] == [0, 3]
    assert record["n_layers"] == 2 and record["cases"] == 1 and set(record["before"]) == set(SCORES) | set(MAGNITUDES)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"check.json", "check.png", "edits"}
    refused = CliRunner().invoke(app, [str(argument) for argument in [*arguments, "--layers", "0;2"]])
    assert refused.exit_code == 2 and "RequestError: --layers '0;2' is no list of layers" in refused.stderr
    refused = CliRunner().invoke(app, [str(argument) for argument in [*arguments, "--editor", "kn"]])
    assert refused.exit_code == 2 and "RequestError: kn does not write to the layer" in refused.stderr
    layers = [*arguments, "--editor", "memit", "--set", "layers=[1,2]"]
    refused = CliRunner().invoke(app, [str(argument) for argument in layers])
    assert refused.exit_code == 2 and "RequestError: layers=(1, 2): leave it out" in refused.stderr
    (tmp_path / "records.json").write_text(json.dumps([{"src": "Who?"}]))
    refused = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert refused.exit_code == 2 and "EvaluationError: Record 0: no 'requested_rewrite'" in refused.stderr
