"""What the text of an option means, and that one text is not taken for many."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

import tracer
from editing import BaseModelError, RequestError, complete
from editing.cli import app
from editing.editors import editor_named
from editing.options import named_values
from editing.scoring.generation import answers
from tracer.errors import SiteError


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("0.5", 0.5),
        ("true", True),
        ("True", True),
        ("None", None),
        ("[3, 4]", (3, 4)),
        ("(3, 4)", (3, 4)),
        ("3,4", (3, 4)),
        ("'a'", "a"),
        ("runs/mend", "runs/mend"),
        ("prompt_last", "prompt_last"),
    ],
)
def test_a_value_is_read_as_json_or_python_writes_it(written: str, meant: object) -> None:
    assert named_values([f"layers={written}"]) == {"layers": meant}


def test_a_setting_without_a_value_is_a_bad_request() -> None:
    with pytest.raises(RequestError, match="--set 'clamp' says no value. Write --set clamp=2"):
        named_values(["clamp"])


def test_a_layer_is_told_once_and_is_a_number(toy_model: tracer.LanguageModel) -> None:
    with pytest.raises(RequestError, match="layers=.* are given: leave layer=. out"):
        editor_named("calinet", toy_model, 1, layers=(2,))
    with pytest.raises(RequestError, match="layer='abc' is no whole number"):
        editor_named("rome", toy_model, layer="abc")
    with pytest.raises(RequestError, match="layer=True is no whole number"):
        editor_named("memit", toy_model, True)
    with pytest.raises(SiteError, match="99"):
        editor_named("ft", toy_model, 99)
    with pytest.raises(RequestError, match="writes one layer, not layers"):
        editor_named("rome", toy_model, layers=(1, 2))
    with pytest.raises(RequestError, match="r-rome is a variant itself"):
        editor_named("r-rome", toy_model, 2, variant="rome")


def test_one_text_is_not_taken_for_many(toy_model: tracer.LanguageModel) -> None:
    for ask in (complete, answers):
        with pytest.raises(RequestError, match=r"one text, not a sequence of prompts. Write \['The Louvre is'\]"):
            ask(toy_model, "The Louvre is")
        with pytest.raises(BaseModelError, match="no model of tracer's"):
            ask(toy_model.torch, ["The Louvre is"])  # pyright: ignore[reportArgumentType]


@pytest.mark.filterwarnings("ignore::editing.EditingWarning")
def test_the_command_shows_the_prompt_with_its_subject(model_folder, tmp_path) -> None:
    command = ["edit", "--prompt", "{} is in", "--subject", "The Louvre", "--new", "Rome", "--editor", "ft"]
    command += ["--set", "steps=1", "--model", model_folder, "--save", tmp_path / "edit.safetensors", "--quiet"]
    told = CliRunner().invoke(app, list(map(str, command)))
    assert told.exit_code == 0 and "before: The Louvre is in" in told.stdout, told.output
