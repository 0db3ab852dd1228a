"""What is measured on: facts, random weights of large models' shapes, random prompts."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

import tracer
from tracer.corrupt import GaussianNoise
from tracer.model import LanguageModel

FACTS = {
    "Eiffel Tower": ("The Eiffel Tower is located in the city of", "The Eiffel Tower"),
    "Angela Merkel": ("The mother tongue of Angela Merkel is", "Angela Merkel"),
}
SHAPES = {
    "gpt2-xl": GPT2Config(n_layer=48, n_embd=1600, n_head=25),
    "llama-8b": LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
    ),
}
SAMPLES = 10


@dataclass(frozen=True)
class Prompt:
    """A prompt as ids [1, token], its subject's tokens and the noise on them."""

    ids: Tensor
    span: tuple[int, int]
    noise: Tensor


def random_model(config: object, device: str = "cpu", dtype: str = "float32", *, seed: int = 0) -> LanguageModel:
    """Random weights of a shape, made on the device."""
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    return tracer.load(model.eval().requires_grad_(False))


def random_prompt(model: LanguageModel, n_tokens: int, span: tuple[int, int], samples: int) -> Prompt:
    """Random tokens, noise of three times the embeddings' spread."""
    ids = torch.randint(10, 1000, (1, n_tokens), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        sigma = float(model.anatomy.embedding(ids.to(model.device)).float().std())
    noise = GaussianNoise(3, sigma)
    width = model.anatomy.embedding_size
    return Prompt(
        ids.to(model.device), span, noise.draws(samples=samples, n_subject=span[1] - span[0], d_model=width, seed=1)
    )


def fact_prompt(model: LanguageModel, name: str, samples: int = SAMPLES) -> Prompt:
    """One of FACTS, its noise that of `tracer.trace`."""
    fact = tracer.Fact(*FACTS[name]).preflight(model)
    sigma = tracer.embedding_sigma(model, [subject for _, subject in FACTS.values()])
    begin, end = fact.subject_span
    width = model.anatomy.embedding_size
    noise = GaussianNoise(3, sigma).draws(samples=samples, n_subject=end - begin, d_model=width, seed=1)
    return Prompt(torch.tensor([fact.token_ids], device=model.device), fact.subject_span, noise)


def clock() -> float:
    """Seconds, once the GPU has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
