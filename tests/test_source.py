"""What is handed to `load` is a plain model, is unwrapped to one, or the error says what to hand over."""

from __future__ import annotations

import pytest
import torch
from conftest import make_tokenizer, tiny_gpt2, tiny_llama
from nnsight import NNsight, TransformersModel

import tracer
from tracer.errors import AnatomyError, ModelSourceError

FACT = tracer.TokenizedFact((11, 87, 254, 33), (1, 3))


def adapted():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    lora = peft.LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    return peft.get_peft_model(tiny_llama().double(), lora)


def compiled_inside() -> torch.nn.Module:
    model = tiny_llama()
    model.model.layers[1].compile()
    return model


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft's, about transformers
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (adapted, r"PeftModel.*merge_and_unload\(\).*get_base_model\(\)"),
        (lambda: torch.compile(tiny_llama()), r"load\(model._orig_mod\)"),
        (compiled_inside, r"compiled.*without compile\(\)"),
        (lambda: torch.nn.DataParallel(tiny_llama()), r"load\(model.module\)"),
        (lambda: tracer.load(tiny_llama(), check=False), r"opened already.*load\(model.torch\)"),
        (lambda: torch.nn.Linear(2, 2), r"Linear is no transformers model.*from_pretrained"),
        (dict, "dict is no transformers model"),
    ],
)
def test_an_object_that_is_no_plain_model_is_refused(make, said: str) -> None:
    with pytest.raises(ModelSourceError, match=said):
        tracer.load(make())


def test_nnsights_wrapper_is_opened() -> None:
    inside, tokenizer = tiny_gpt2(), make_tokenizer(bos=False)
    plain = tracer.load(NNsight(inside))
    assert plain.torch is inside and plain.tokenizer is None and plain.sweep_fault is None
    wrapped = TransformersModel(tiny_gpt2(), tokenizer=tokenizer)
    assert tracer.load(wrapped, check=False).tokenizer is tokenizer


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_an_adapter_beside_the_weights_is_traced_as_one_merged_into_them() -> None:
    traces = []
    for model in (adapted().get_base_model(), adapted().merge_and_unload()):
        loaded = tracer.load(model)
        assert loaded.sweep_fault is None
        traces.append(tracer.trace(loaded, FACT, samples=2, corruption=tracer.GaussianNoise(3, 0.3)))
    for name, restored in traces[0].restored.items():
        assert abs(restored - traces[1].restored[name]).max() < 1e-9


def test_a_model_that_returns_tuples_is_refused_and_loaded_from_a_folder_all_the_same(tmp_path, tokenizer) -> None:
    model = tiny_gpt2()
    model.config.return_dict = False
    with pytest.raises(ModelSourceError, match="config.return_dict = True"):
        tracer.load(model)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert tracer.load(tmp_path, device="cpu").sweep_fault is None


def test_a_model_that_does_not_run_is_refused() -> None:
    model = tiny_llama().double()
    model.lm_head.float()
    with pytest.raises(AnatomyError, match=r"does not run on three tokens \(RuntimeError.*one dtype"):
        tracer.load(model)
