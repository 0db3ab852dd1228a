"""Tiny seeded models of each family, and a tokenizer trained on the bundled facts, made in the test."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import tracer
from tracer.facts import bundled

WIDTH, LAYERS, VOCABULARY = 32, 4, 600


def pytest_configure() -> None:
    """Processes that test beside each other share the cores, and so do those that they start."""
    beside = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))
    if beside > 1:
        threads = max(1, torch.get_num_threads() // beside)
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)


def weights(model: tracer.LanguageModel) -> dict[str, torch.Tensor]:
    """A copy of every weight."""
    return {name: tensor.clone() for name, tensor in model.torch.state_dict().items()}


def assert_same_weights(model: tracer.LanguageModel, before: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    for name, tensor in model.torch.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def tiny_gpt2() -> PreTrainedModel:
    config = GPT2Config(
        n_layer=LAYERS, n_embd=WIDTH, n_head=4, vocab_size=VOCABULARY, n_positions=96, initializer_range=0.3
    )
    return GPT2LMHeadModel(config)


def tiny_llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**llama_like()))


def tiny_gemma3() -> PreTrainedModel:
    layer_types = ["sliding_attention", "full_attention"] * (LAYERS // 2)
    return Gemma3ForCausalLM(Gemma3TextConfig(**llama_like(), sliding_window=3, layer_types=layer_types))


def llama_like() -> dict:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,  # grouped-query attention
        "head_dim": 8,
        "max_position_embeddings": 96,
        "initializer_range": 0.3,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": tiny_gpt2,
    "llama, grouped-query": tiny_llama,
    "gemma3, sliding window": tiny_gemma3,
}


def make_tokenizer(*, bos: bool) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the bundled facts, with or without a start token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<bos>", "<eos>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([f"{fact.prompt} {fact.answer}" for fact in bundled()], trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", padding_side="left"
    )


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer(bos=False)


@pytest.fixture(scope="session")
def tokenizer_with_bos() -> PreTrainedTokenizerFast:
    return make_tokenizer(bos=True)


@pytest.fixture(scope="session")
def closing() -> PreTrainedTokenizerFast:
    """A tokenizer that closes each text, as T5's does, and knows a sentinel."""
    from encoder_decoders import closing_tokenizer  # which builds on this module

    return closing_tokenizer()


@pytest.fixture(scope="session")
def knowing(closing: PreTrainedTokenizerFast) -> tracer.LanguageModel:
    """A tiny float64 T5 that knows where cities lie."""
    from encoder_decoders import knowing_t5

    return knowing_t5(closing)


@pytest.fixture(params=FAMILIES)
def family_model(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerFast) -> tracer.LanguageModel:
    """One tiny random float64 model of each family."""
    torch.manual_seed(0)
    return tracer.load(FAMILIES[request.param]().double(), tokenizer=tokenizer)


@pytest.fixture
def toy_model(tokenizer: PreTrainedTokenizerFast) -> tracer.LanguageModel:
    """A tiny random float64 GPT-2."""
    torch.manual_seed(0)
    return tracer.load(tiny_gpt2().double(), tokenizer=tokenizer)


@pytest.fixture
def linear_model() -> tracer.LanguageModel:
    """A GPT-2 whose logits are linear in its embeddings: no norms, no non-linearity, uniform attention."""
    torch.manual_seed(0)
    options = {"n_layer": LAYERS, "n_embd": WIDTH, "n_head": 4, "vocab_size": 60, "n_positions": 32}
    model = GPT2LMHeadModel(GPT2Config(**options, activation_function="linear", initializer_range=0.2))
    model.transformer.ln_f = torch.nn.Identity()
    for block in model.transformer.h:
        block.ln_1, block.ln_2 = torch.nn.Identity(), torch.nn.Identity()
        block.attn.c_attn.weight.data[:, : 2 * WIDTH] = 0  # queries and keys
    return tracer.load(model.double())


@pytest.fixture(scope="session")
def model_folder(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random float32 GPT-2 saved as a folder, for processes that load it by name."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_gpt2().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, request) -> None:
    """Tests keep their statistics to themselves; only those marked `real_model` use the user's cache."""
    if "real_model" not in request.keywords:
        monkeypatch.setenv("LOCATE_THEN_EDIT_CACHE", str(tmp_path_factory.mktemp("cache")))


def noise_of(samples: int, n_subject: int, *, level: float = 0.9, width: int = WIDTH) -> torch.Tensor:
    return torch.from_numpy(level * np.random.RandomState(1).randn(samples, n_subject, width))
