"""Models are opened, their parts found by role, their weights fingerprinted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import FAMILIES, LAYERS, WIDTH, llama_like, make_tokenizer, tiny_gemma3, tiny_gpt2
from transformers import AutoModelForCausalLM, HeliumConfig, HeliumForCausalLM, LlamaConfig, LlamaForCausalLM

import tracer
from editing import ROME, EditRequest
from editing.change import writable
from editing.errors import BaseModelError
from tracer.anatomy import is_stored_transposed
from tracer.anatomy.names import LLAMA, POST_NORM
from tracer.errors import AnatomyError, ModelSourceError, NumericsError, SiteError, TracerWarning
from tracer.sweep.self_test import self_test


def test_every_family_has_all_roles(family_model: tracer.LanguageModel) -> None:
    anatomy = family_model.anatomy
    assert (anatomy.n_layers, anatomy.d_model) == (LAYERS, WIDTH)
    for layer in range(LAYERS):
        weight = family_model.torch.get_parameter(anatomy.value_weight_name(layer))
        assert weight is anatomy.value_matrix(layer).weight


def test_unembedding_gives_the_models_own_logits(family_model: tracer.LanguageModel) -> None:
    ids = torch.tensor([[5, 9, 200]])
    states = []
    handle = family_model.anatomy.blocks[-1].register_forward_hook(lambda m, a, out: states.append(out))
    logits = family_model.torch(ids).logits
    handle.remove()
    torch.testing.assert_close(family_model.anatomy.unembed(states[0]), logits)


def test_orientation_is_decided_by_the_modules_type(toy_model: tracer.LanguageModel) -> None:
    assert is_stored_transposed(toy_model.anatomy.value_matrix(0))
    assert not is_stored_transposed(torch.nn.Linear(3, 3))
    with pytest.raises(AnatomyError, match="neither Linear nor Conv1D"):
        is_stored_transposed(torch.nn.LayerNorm(3))


def test_gemmas_sites_are_after_the_norm() -> None:
    model = tracer.load(tiny_gemma3())
    assert model.anatomy.site_module("mlp", 1) is model.torch.model.layers[1].post_feedforward_layernorm


def test_names_that_do_not_fit_list_the_missing_role() -> None:
    with pytest.raises(AnatomyError, match=r"names given do not fit.*embedding \(model.embed_tokens\)"):
        tracer.load(tiny_gpt2(), names=POST_NORM)


def test_a_layer_out_of_range_is_refused(toy_model: tracer.LanguageModel) -> None:
    with pytest.raises(SiteError, match="has layers 0 to 3.*write 3"):
        toy_model.anatomy.check_layer(4)


def test_the_fingerprint_follows_the_weights_and_comes_back(toy_model: tracer.LanguageModel) -> None:
    before = toy_model.fingerprint()
    weight = toy_model.anatomy.value_matrix(1).weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[0, 0] += 1e-12
    assert toy_model.fingerprint() != before
    weight.data.copy_(kept)  # a write that torch does not count
    assert toy_model.fingerprint() == before
    weight.data.view(-1)[1] += 5
    assert toy_model.fingerprint() != before


def test_equal_weights_have_equal_fingerprints() -> None:
    prints = set()
    for _ in range(2):
        torch.manual_seed(3)
        prints.add(tracer.load(tiny_gpt2()).fingerprint())
    assert len(prints) == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_a_saved_folder_loads_as_the_same_model(name: str, tokenizer, tmp_path) -> None:
    torch.manual_seed(0)
    model = tracer.load(FAMILIES[name](), tokenizer=tokenizer)
    model.torch.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = tracer.load(tmp_path, device="cpu")
    assert again.fingerprint() == model.fingerprint()
    assert again.tokenizer("France").input_ids == tokenizer("France").input_ids


def test_sources_that_are_not_there_say_what_to_write(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelSourceError, match="gemma-3-270m, smollm2"):
        tracer.load(tmp_path / "empty")
    with pytest.raises(ModelSourceError, match="There is no file"):
        tracer.load(tmp_path / "weights.gguf")
    with pytest.raises(ModelSourceError, match="Write 'float32'"):
        tracer.load("smollm2", dtype="int8")


def test_float16_is_warned_about(tokenizer, tmp_path) -> None:
    tiny_gpt2().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.warns(TracerWarning, match="bfloat16"):
        tracer.load(tmp_path, dtype="float16", device="cpu")


def test_nan_logits_stop_the_trace(toy_model: tracer.LanguageModel) -> None:
    with torch.no_grad():
        toy_model.anatomy.after_blocks[0].weight[0] = float("nan")
    fact = tracer.Fact("The capital of France is", "France")
    for engine in ("sweep", "passes"):
        with pytest.raises(NumericsError, match="NaN or infinite in float64"):
            tracer.trace(toy_model, fact, samples=2, engine=engine)


def test_a_loaded_model_takes_no_loading_options() -> None:
    with pytest.raises(ModelSourceError, match="stays on its device"):
        tracer.load(tiny_gpt2(), dtype="bfloat16")


@pytest.mark.parametrize("options", [{"device": "cuda:77"}, {"device": "nowhere"}, {"dtype": "float8_e4m3fn"}])
def test_devices_and_types_that_are_not_there_are_refused(options: dict) -> None:
    with pytest.raises(ModelSourceError, match="Write"):
        tracer.load("smollm2", **options)


def test_damaged_weights_are_refused(tokenizer, tmp_path) -> None:
    tiny_gpt2().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelSourceError, match="Could not load"):
        tracer.load(tmp_path, device="cpu")
    (tmp_path / "bad.gguf").write_bytes(b"no gguf")
    with pytest.raises(ModelSourceError, match="Could not load"):
        tracer.load(tmp_path / "bad.gguf")


def test_a_head_that_does_more_is_refused(monkeypatch) -> None:
    model = tiny_gpt2()
    forward = model.forward

    def doubled(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = 2 * output.logits
        return output

    monkeypatch.setattr(model, "forward", doubled)
    with pytest.raises(AnatomyError, match="own logits"):
        tracer.load(model)


def test_names_given_open_a_family_that_is_not_listed() -> None:
    model = tracer.load(HeliumForCausalLM(HeliumConfig(**llama_like())).double(), names=LLAMA)
    assert model.anatomy.names is LLAMA
    assert self_test(model) < 1e-9


def test_the_users_tokenizer_is_left_as_it_is(tokenizer_with_bos) -> None:
    own = make_tokenizer(bos=True)
    own.pad_token = None
    model = tracer.load(tiny_gpt2(), tokenizer=own)
    tracer.trace(model, tracer.Fact("France is", "France"), samples=2, engine="passes", kinds=("state",))
    assert own.pad_token is None


def test_an_offloaded_model_is_traced_with_the_same_numbers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    whole = LlamaForCausalLM(LlamaConfig(**llama_like()))
    whole.save_pretrained(tmp_path / "whole")
    on_disk = {"model.layers.1": "disk", "model.layers.3": "disk", "lm_head": "disk"}
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", **on_disk}
    places |= {"model.layers.0": "cpu", "model.layers.2": "cpu"}
    parts = AutoModelForCausalLM.from_pretrained(
        tmp_path / "whole", device_map=places, offload_folder=tmp_path / "off", dtype=torch.float32
    )
    model, plain = tracer.load(parts), tracer.load(whole)
    assert model.sweep_fault is None and model.fingerprint() == plain.fingerprint()
    fact = tracer.TokenizedFact((11, 87, 254, 33, 480), (1, 3))
    options = {"samples": 2, "corruption": tracer.GaussianNoise(3, 0.3), "severed": ("mlp",)}
    found, expected = tracer.trace(model, fact, **options), tracer.trace(plain, fact, **options)
    for name, values in expected.restored.items():
        np.testing.assert_allclose(found.restored[name], values, atol=1e-6, err_msg=name)
    with pytest.raises(BaseModelError, match="layers.1.*offloaded: a change would be lost"):
        writable(model, model.anatomy.value_weight_name(1))


def test_an_offloaded_embedding_is_refused_with_what_to_write(tmp_path: Path) -> None:
    LlamaForCausalLM(LlamaConfig(**llama_like())).save_pretrained(tmp_path / "whole")
    everything = {"": "disk"}
    parts = AutoModelForCausalLM.from_pretrained(
        tmp_path / "whole", device_map=everything, offload_folder=tmp_path / "off", dtype=torch.float32
    )
    with pytest.raises(ModelSourceError, match="'model.embed_tokens': 'cpu'"):
        tracer.load(parts)


def test_a_quantised_weight_is_not_edited(toy_model: tracer.LanguageModel) -> None:
    matrix = toy_model.anatomy.value_matrix(1)
    matrix.weight = torch.nn.Parameter(torch.zeros_like(matrix.weight, dtype=torch.int8), requires_grad=False)
    request = EditRequest("The Louvre is in", subject="The Louvre", new=" Rome")
    with pytest.raises(BaseModelError, match=r"quantised \(int8\).*unquantised"):
        ROME(layer=1).apply(toy_model, [request])
