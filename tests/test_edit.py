"""An edit can be undone bit for bit, saved, loaded, merged and taken out again; and refuses the wrong model."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import FAMILIES, assert_same_weights, tiny_gpt2, weights

import tracer
from editing import (
    FT,
    MEMIT,
    ROME,
    AlphaEdit,
    BaseModelError,
    EditFailedError,
    EditOrderError,
    EditRequest,
    load_edit,
    undo_all,
    unedited,
)
from editing.change import LowRank, Replacement
from editing.edit import Edit, Written
from editing.model_folder import merge, unmerge
from editing.writing import editable, writing
from tracer.errors import FileFormatError
from tracer.storage import read_tensors, write_tensors

REQUEST = EditRequest("The Space Needle is located in the city of", subject="The Space Needle", new=" Paris")
OTHER = EditRequest("The mother tongue of Angela Merkel is", subject="Angela Merkel", new=" French")
QUICK = {"context_plan": (), "tokens": 700, "steps": 4}
pytestmark = pytest.mark.filterwarnings("ignore::editing.EditingWarning")


def test_undo_restores_every_weight_bit_for_bit(family_model: tracer.LanguageModel) -> None:
    before = weights(family_model)
    edit = ROME(layer=1, **QUICK).apply(family_model, [REQUEST])
    changed = [name for name, value in family_model.torch.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == [family_model.anatomy.value_weight_name(1)]
    edit.undo()
    assert_same_weights(family_model, before)
    edit.undo()  # a second time is harmless
    assert_same_weights(family_model, before)


def test_leaving_the_block_by_an_exception_undoes_too(toy_model: tracer.LanguageModel) -> None:
    before = weights(toy_model)
    with pytest.raises(KeyboardInterrupt), ROME(layer=1, **QUICK).apply(toy_model, [REQUEST]):
        raise KeyboardInterrupt
    assert_same_weights(toy_model, before)


def test_an_exception_between_two_requests_undoes_the_first(toy_model: tracer.LanguageModel, monkeypatch) -> None:
    before, real, written = weights(toy_model), Edit.write, []

    def second_fails(self: Edit, change: LowRank) -> Written:
        if written:
            raise KeyboardInterrupt
        written.append(change)
        return real(self, change)

    monkeypatch.setattr(Edit, "write", second_fails)
    with pytest.raises(KeyboardInterrupt):
        ROME(layer=1, **QUICK).apply(toy_model, [REQUEST, OTHER])
    assert written
    assert_same_weights(toy_model, before)
    assert toy_model.edits == []


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_edit_gives_the_same_logits(name: str, dtype: torch.dtype, tokenizer, tmp_path) -> None:
    torch.manual_seed(0)
    model = tracer.load(FAMILIES[name]().to(dtype), tokenizer=tokenizer)
    ids = torch.tensor([[5, 77, 203, 9]])
    edit = ROME(layer=1, **QUICK).apply(model, [REQUEST, OTHER])
    edited = model.torch(ids).logits
    edit.save(tmp_path / "edit.safetensors")
    edit.undo()
    with load_edit(tmp_path / "edit.safetensors").apply(model) as again:
        assert torch.equal(model.torch(ids).logits, edited)
        assert again.requests == (REQUEST, OTHER)
        assert dict(again.diagnostics[0]) == dict(edit.diagnostics[0])
    assert (tmp_path / "edit.safetensors").stat().st_size < 20_000


def test_another_model_is_refused(toy_model: tracer.LanguageModel, tokenizer, tmp_path) -> None:
    ROME(layer=1, **QUICK).apply(toy_model, [REQUEST]).save(tmp_path / "edit.safetensors")
    torch.manual_seed(1)
    other = tracer.load(tiny_gpt2().double(), tokenizer=tokenizer)
    with pytest.raises(BaseModelError, match="made for weights .* Load the model"):
        load_edit(tmp_path / "edit.safetensors").apply(other)
    with pytest.raises(BaseModelError):  # the same model, but edited already
        load_edit(tmp_path / "edit.safetensors").apply(toy_model)


def test_what_tracer_did_not_open_is_refused(toy_model: tracer.LanguageModel, tmp_path) -> None:
    edit = ROME(layer=1, **QUICK).apply(toy_model, [REQUEST])
    edit.undo()
    for other in (toy_model.torch, None):
        with pytest.raises(BaseModelError, match=r"Write model = tracer.load\(model\) first"):
            edit.apply(other)
    with pytest.raises(BaseModelError, match="tracer.load"):
        edit.to_peft(tmp_path / "adapter", model=toy_model.torch)


def test_a_loaded_edit_tells_what_the_fresh_one_told(toy_model: tracer.LanguageModel, tmp_path) -> None:
    edit = AlphaEdit(layers=(1, 2), **QUICK).apply(toy_model, [REQUEST])
    edit.save(tmp_path / "edit.safetensors")
    loaded = load_edit(tmp_path / "edit.safetensors")
    assert loaded.summary == edit.summary and [one["layer"] for one in loaded.summary["layers"]] == [1, 2]
    assert loaded.diagnostics == edit.diagnostics


def test_an_edit_is_applied_once(toy_model: tracer.LanguageModel) -> None:
    edit = ROME(layer=1, **QUICK).apply(toy_model, [REQUEST])
    with pytest.raises(EditFailedError, match="applied already"):
        edit.apply(toy_model)
    edit.undo()
    edit.apply(toy_model).undo()


def test_a_block_with_an_edit_that_is_not_applied_is_refused(toy_model: tracer.LanguageModel, tmp_path) -> None:
    (edit,) = ROME(layer=1, **QUICK).each(toy_model, [REQUEST])
    edit.save(tmp_path / "edit.safetensors")
    for unapplied in (edit, load_edit(tmp_path / "edit.safetensors")):
        with pytest.raises(EditFailedError, match=r"Write with edit\.apply\(model\)"), unapplied:
            pass
    with edit.apply(toy_model), ROME(layer=1, **QUICK).apply(toy_model, []):
        assert len(toy_model.edits) == 2


def test_an_edit_is_not_saved_over_a_folder(toy_model: tracer.LanguageModel, tmp_path) -> None:
    (edit,) = ROME(layer=1, **QUICK).each(toy_model, [REQUEST])
    with pytest.raises(FileFormatError, match="is a folder"):
        edit.save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_weights_made_in_inference_mode_are_refused_before_the_model_runs(tokenizer) -> None:
    with torch.inference_mode():
        model = tracer.load(tiny_gpt2(), tokenizer=tokenizer, check=False)
    for editor in (ROME(layer=1, **QUICK), FT(layer=1)):
        with pytest.raises(BaseModelError, match=r"inference_mode\(\)\. Load the model outside"):
            editor.apply(model, [REQUEST])


def test_damaged_edit_files_are_refused(toy_model: tracer.LanguageModel, tmp_path) -> None:
    path = tmp_path / "edit.safetensors"
    ROME(layer=1, **QUICK).apply(toy_model, [REQUEST]).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(FileFormatError, match="not a whole safetensors file"):
        load_edit(path)
    path.write_bytes(b"")
    with pytest.raises(FileFormatError):
        load_edit(path)


def test_stacked_edits_of_one_weight_come_off_last_first(toy_model: tracer.LanguageModel) -> None:
    before = weights(toy_model)
    first = ROME(layer=1, **QUICK).apply(toy_model, [REQUEST])
    second = ROME(layer=1, **QUICK).apply(toy_model, [OTHER])
    with pytest.raises(EditOrderError, match="Angela Merkel -> French"):
        first.undo()
    undo_all([first, second])
    assert_same_weights(toy_model, before)


def test_a_chain_of_edits_comes_off_with_the_block_it_began_in(toy_model: tracer.LanguageModel) -> None:
    """The last edit shares no weight with the first, but one with an edit that does."""
    before = weights(toy_model)
    with ROME(layer=1, **QUICK).apply(toy_model, [REQUEST]) as first:
        MEMIT(layers=(1, 2), **QUICK).apply(toy_model, [OTHER])
        ROME(layer=2, **QUICK).apply(toy_model, [REQUEST])
        with pytest.raises(EditOrderError, match="2 later edit"):
            first.undo()
    assert_same_weights(toy_model, before)
    assert toy_model.edits == []


def test_a_model_on_several_devices_is_refused_and_may_remember(toy_model: tracer.LanguageModel, monkeypatch) -> None:
    places = [torch.nn.Parameter(torch.zeros(1)), SimpleNamespace(device="cuda:1")]
    monkeypatch.setattr(toy_model.torch, "parameters", lambda *_: iter(places))
    with pytest.raises(BaseModelError, match=r"lies on cpu, cuda:1; .* device='cuda:1'"), editable(toy_model):
        pass
    edit = Edit((REQUEST,), (), {}, "")
    with pytest.raises(BaseModelError), writing(edit, toy_model):
        pass
    assert toy_model.edits == []
    with writing(edit, toy_model, anywhere=True):
        assert toy_model.edits == [edit]


def test_stacked_edits_of_different_weights_come_off_in_any_order(toy_model: tracer.LanguageModel) -> None:
    before = weights(toy_model)
    first = ROME(layer=1, **QUICK).apply(toy_model, [REQUEST])
    second = ROME(layer=2, **QUICK).apply(toy_model, [OTHER])
    first.undo()
    second.undo()
    assert_same_weights(toy_model, before)


def test_unedited_shows_the_original_weights_and_puts_the_edits_back(toy_model: tracer.LanguageModel) -> None:
    before = weights(toy_model)
    ROME(layer=1, **QUICK).apply(toy_model, [REQUEST])
    ROME(layer=1, **QUICK).apply(toy_model, [OTHER])
    edited = weights(toy_model)
    with unedited(toy_model):
        assert_same_weights(toy_model, before)
    assert_same_weights(toy_model, edited)


def test_a_change_that_rounding_swallows_is_refused(tokenizer) -> None:
    model = tracer.load(tiny_gpt2().to(torch.bfloat16), tokenizer=tokenizer)
    before = weights(model)
    weight = model.anatomy.value_weight_name(0)
    tiny = torch.full((model.d_model, 1), 1e-9, dtype=torch.float64)
    change = LowRank(weight, tiny, torch.ones(4 * model.d_model, 1, dtype=torch.float64))
    edit = Edit((REQUEST,), (change,), {"method": "planted"}, model.fingerprint())
    with pytest.raises(EditFailedError, match="lost in torch.bfloat16"):
        edit.apply(model)
    assert_same_weights(model, before)
    assert model.edits == []


def test_the_share_lost_by_rounding_is_reported(tokenizer) -> None:
    torch.manual_seed(0)
    for dtype, low, high in ((torch.float32, 0, 1e-5), (torch.bfloat16, 1e-3, 1)):
        model = tracer.load(tiny_gpt2().to(dtype), tokenizer=tokenizer)
        with ROME(layer=1, **QUICK).apply(model, [REQUEST]) as edit:
            assert low <= edit.diagnostics[0]["lost_by_rounding"] < high


def test_a_merged_folder_is_the_edited_model_and_gives_the_original_back(
    toy_model: tracer.LanguageModel, tmp_path
) -> None:
    before = toy_model.fingerprint()
    edit = ROME(layer=1, **QUICK).apply(toy_model, [REQUEST])
    edit.merge(tmp_path / "edited")
    merged = tracer.load(tmp_path / "edited", dtype="float64", device="cpu")
    assert merged.fingerprint() == toy_model.fingerprint() != before
    unmerge(tmp_path / "edited", tmp_path / "original")
    assert tracer.load(tmp_path / "original", dtype="float64", device="cpu").fingerprint() == before
    with pytest.raises(EditFailedError, match="there already"):
        merge(edit, tmp_path / "edited")
    edit.undo()
    with pytest.raises(EditFailedError, match="one edit applied"):
        merge(edit, tmp_path / "elsewhere")


def test_edits_made_inside_the_block_come_off_with_it_and_the_users_error_gets_out(toy_model) -> None:
    before = weights(toy_model)
    with pytest.raises(ZeroDivisionError), ROME(layer=1, **QUICK).apply(toy_model, [REQUEST]):
        ROME(layer=1, **QUICK).apply(toy_model, [OTHER])
        raise ZeroDivisionError
    assert_same_weights(toy_model, before)
    assert toy_model.edits == []


def test_two_wrappers_of_one_model_know_of_each_others_edits(toy_model: tracer.LanguageModel) -> None:
    before = weights(toy_model)
    other = tracer.load(toy_model.torch, tokenizer=toy_model.tokenizer)
    first = ROME(layer=1, **QUICK).apply(toy_model, [REQUEST])
    second = ROME(layer=1, **QUICK).apply(other, [OTHER])
    with pytest.raises(EditOrderError):
        first.undo()
    second.undo()
    first.undo()
    assert_same_weights(toy_model, before)


@pytest.mark.parametrize(
    "change",
    [{"format": 99}, {"changes": []}, {"editor": None}, {"requests": [{"prompt": 3}]}, {"changes": [{"kind": "none"}]}],
)
def test_edit_files_changed_by_hand_are_refused(toy_model: tracer.LanguageModel, tmp_path, change: dict) -> None:
    path = tmp_path / "edit.safetensors"
    with ROME(layer=1, **QUICK).apply(toy_model, [REQUEST]) as edit:
        edit.save(path)
    tensors, about = read_tensors(path, "edit")
    write_tensors(path, tensors, {**about, **change})
    with pytest.raises(FileFormatError):
        load_edit(path)


def test_an_edit_of_a_weight_that_is_not_there_is_refused(toy_model: tracer.LanguageModel) -> None:
    ones = torch.ones(3, 1, dtype=torch.float64)
    with pytest.raises(BaseModelError, match="no weight 'transformer.nowhere'"):
        Edit((REQUEST,), (LowRank("transformer.nowhere", ones, ones),), {}, toy_model.fingerprint()).apply(toy_model)
    assert toy_model.edits == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_replacement_is_written_saved_and_undone_bit_for_bit(tokenizer, dtype: torch.dtype, tmp_path) -> None:
    model = tracer.load(tiny_gpt2().to(dtype), tokenizer=tokenizer)
    before, weight = weights(model), model.anatomy.value_weight_name(1)
    values = torch.randn_like(model.torch.get_parameter(weight))
    edit = Edit((REQUEST,), (Replacement(weight, values),), {"method": "planted"}, model.fingerprint()).apply(model)
    assert torch.equal(model.torch.get_parameter(weight), values)
    edit.save(tmp_path / "edit.safetensors")
    edit.undo()
    assert_same_weights(model, before)
    with load_edit(tmp_path / "edit.safetensors").apply(model):
        assert torch.equal(model.torch.get_parameter(weight), values)


def test_what_an_edit_keeps_for_later_ones_is_saved_with_it(toy_model: tracer.LanguageModel, tmp_path) -> None:
    kept = {"keys.1": torch.randn(4, 2, dtype=torch.float64)}
    edit = Edit((REQUEST,), (), {"method": "planted"}, toy_model.fingerprint(), kept=kept)
    edit.save(tmp_path / "edit.safetensors")
    assert torch.equal(load_edit(tmp_path / "edit.safetensors").kept["keys.1"], kept["keys.1"])


def test_numpy_integers_are_saved_like_any_other(toy_model: tracer.LanguageModel, tmp_path) -> None:
    with ROME(layer=np.int64(1), **QUICK).apply(toy_model, [REQUEST]) as edit:
        edit.save(tmp_path / "edit.safetensors")
    assert load_edit(tmp_path / "edit.safetensors").editor["layer"] == 1


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_edit_can_be_made_without_gradients_around_it(toy_model: tracer.LanguageModel, mode) -> None:
    with mode(), ROME(layer=1, **QUICK).apply(toy_model, [REQUEST]) as edit:
        assert edit.changes
