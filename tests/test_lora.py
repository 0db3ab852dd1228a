"""An adapter gives the edited model: through PEFT, through merging, and by its own two matrices."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import FAMILIES, tiny_gpt2
from peft import PeftModel
from safetensors.torch import load_file
from test_edit import OTHER, REQUEST

import tracer
from editing import ROME, BaseModelError, EditFailedError, EditingWarning, RequestError, load_edit
from editing.change import LowRank
from editing.edit import Edit
from editing.fine_tuning.ft import FT
from editing.lora import CONFIG, WEIGHTS, to_peft

IDS = torch.tensor([[5, 77, 203, 9, 311]])
QUICK = {"context_plan": (), "tokens": 700, "steps": 4}
pytestmark = [
    pytest.mark.filterwarnings("ignore::editing.EditingWarning"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # PEFT asks transformers for it
]


def opened(name: str, dtype: torch.dtype, tokenizer) -> tracer.LanguageModel:
    torch.manual_seed(0)
    return tracer.load(FAMILIES[name]().to(dtype), tokenizer=tokenizer, check=False)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_peft_gives_the_edited_models_logits(name: str, dtype: torch.dtype, bound: float, tokenizer, tmp_path) -> None:
    """Two changes of one layer and one of another: ranks differ between modules."""
    model = opened(name, dtype, tokenizer)
    plain = logits(model.torch)
    base = model.fingerprint()
    first, second = ROME(layer=1, **QUICK), ROME(layer=2, **QUICK)
    with first.apply(model, [REQUEST, OTHER]) as lower, second.apply(model, [OTHER]) as upper:
        edited = logits(model.torch)
        changes = (*lower.changes, *upper.changes)
    joined = Edit((REQUEST, OTHER), changes, {"method": "both"}, base)
    adapter = to_peft(joined, tmp_path / "adapter", model=model)
    assert list(adapter.ranks.values()) == [2, 1] and set(adapter.lost.values()) == {0.0}
    adapted = PeftModel.from_pretrained(opened(name, dtype, tokenizer).torch, str(tmp_path / "adapter")).eval()
    assert (edited - plain).abs().max() > 1e3 * bound
    torch.testing.assert_close(logits(adapted), edited, atol=bound * edited.abs().max(), rtol=0)
    torch.testing.assert_close(logits(adapted.merge_and_unload()), edited, atol=bound * edited.abs().max(), rtol=0)


def test_an_applied_and_a_loaded_edit_give_the_same_adapter(toy_model: tracer.LanguageModel, tmp_path) -> None:
    with ROME(layer=1, **QUICK).apply(toy_model, [REQUEST]) as edit:
        to_peft(edit, tmp_path / "applied")
        edit.save(tmp_path / "edit.safetensors")
    to_peft(load_edit(tmp_path / "edit.safetensors"), tmp_path / "loaded", model=toy_model)
    for file in (CONFIG, WEIGHTS):
        assert (tmp_path / "applied" / file).read_bytes() == (tmp_path / "loaded" / file).read_bytes()


def test_the_matrices_multiply_to_the_change_with_no_rank_to_spare(toy_model: tracer.LanguageModel, tmp_path) -> None:
    weight = toy_model.anatomy.value_weight_name(2)
    out, into = torch.randn(32, 2, dtype=torch.float64), torch.randn(128, 2, dtype=torch.float64)
    changes = (
        LowRank(weight, 1e4 * out, into),
        LowRank(weight, out @ torch.ones(2, 50).double(), into[:, :1].expand(-1, 50)),
    )
    adapter = to_peft(Edit((), changes, {}, toy_model.fingerprint()), tmp_path / "adapter", model=toy_model)
    module = weight.removesuffix(".weight")
    assert adapter.ranks == {module: 2}
    found = load_file(tmp_path / "adapter" / WEIGHTS)
    product = (found[f"base_model.model.{module}.lora_{side}.weight"] for side in "BA")
    b, a = product
    wanted = sum(change.out @ change.into.T for change in changes)
    torch.testing.assert_close(b @ a, wanted, atol=1e-12 * float(wanted.norm()), rtol=0)
    assert float(b.norm()) == pytest.approx(float(a.norm()))
    settings = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    assert settings["r"] == settings["lora_alpha"] == 2 and settings["fan_in_fan_out"] is True


def test_replaced_weights_are_refused_unless_a_rank_is_given(toy_model: tracer.LanguageModel, tmp_path) -> None:
    said = r"FT-M replaces transformer.h.1.mlp.c_proj .*rank=16"
    with FT(layer=1, steps=2).apply(toy_model, [REQUEST]) as edit, pytest.raises(EditFailedError, match=said):
        to_peft(edit, tmp_path / "adapter")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FAMILIES)
def test_a_fine_tuned_matrix_with_its_bias_is_exact_at_full_rank(name: str, tokenizer, tmp_path) -> None:
    model = opened(name, torch.float64, tokenizer)
    with FT(layer=1, steps=3).apply(model, [REQUEST]) as edit:
        edited = logits(model.torch)
        adapter = to_peft(edit, tmp_path / "adapter", rank=32)
    assert set(adapter.lost.values()) == {0.0}
    adapted = PeftModel.from_pretrained(opened(name, torch.float64, tokenizer).torch, str(tmp_path / "adapter")).eval()
    assert (edited - logits(model.torch)).abs().max() > 1e-3
    torch.testing.assert_close(logits(adapted), edited, atol=1e-11, rtol=0)
    torch.testing.assert_close(logits(adapted.merge_and_unload()), edited, atol=1e-11, rtol=0)


def test_the_share_that_a_rank_leaves_out_is_said(toy_model: tracer.LanguageModel, tmp_path) -> None:
    before = toy_model.anatomy.value_matrix(1).weight.detach().clone()
    with FT(layer=1, steps=2).apply(toy_model, [REQUEST]) as edit:
        change = toy_model.anatomy.value_matrix(1).weight.detach() - before
        with pytest.warns(EditingWarning, match="leaves out"):
            adapter = to_peft(edit, tmp_path / "adapter", rank=3)
    singular = torch.linalg.svdvals(change)
    assert set(adapter.ranks.values()) == {3}
    (lost,) = adapter.lost.values()
    assert lost == pytest.approx(float(singular[3:].norm() / singular.norm()), abs=1e-12)


def test_a_16_bit_models_adapter_is_written_in_32(tokenizer, tmp_path) -> None:
    model = opened("gpt2", torch.bfloat16, tokenizer)
    with ROME(layer=1, **QUICK).apply(model, [REQUEST]) as edit:
        to_peft(edit, tmp_path / "adapter")
    assert {tensor.dtype for tensor in load_file(tmp_path / "adapter" / WEIGHTS).values()} == {torch.float32}


def test_what_cannot_be_written_is_refused(toy_model: tracer.LanguageModel, tokenizer, tmp_path) -> None:
    edit = ROME(layer=1, **QUICK).apply(toy_model, [REQUEST])
    edit.undo()
    with pytest.raises(BaseModelError, match="not applied. Write to_peft"):
        to_peft(edit, tmp_path / "adapter")
    torch.manual_seed(1)
    with pytest.raises(BaseModelError, match="made for weights"):
        to_peft(edit, tmp_path / "adapter", model=tracer.load(tiny_gpt2().double(), tokenizer=tokenizer, check=False))
    with pytest.raises(EditFailedError, match="keeps nothing"):
        to_peft(edit, tmp_path / "adapter", model=toy_model, rank=0)
    for rank in ("16", 2.5, True):
        with pytest.raises(RequestError, match="is no whole number. Write rank=16"):
            edit.to_peft(tmp_path / "adapter", model=toy_model, rank=rank)
    with pytest.raises(EditFailedError, match="changes no weight"):
        to_peft(Edit((), (), {}, edit.base), tmp_path / "adapter", model=toy_model)
    to_peft(edit, tmp_path / "adapter", model=toy_model)
    with pytest.raises(EditFailedError, match="there already"):
        to_peft(edit, tmp_path / "adapter", model=toy_model)
