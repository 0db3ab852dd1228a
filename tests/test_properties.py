"""Laws of the sweep over random models, prompts, subjects, windows and samples."""

from __future__ import annotations

from typing import Any

import torch
from conftest import llama_like
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

import tracer
from tracer.answer import probability
from tracer.corrupt import GaussianNoise
from tracer.passes import Passes
from tracer.sweep import Sweep
from tracer.sweep.budget import Budget


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    """A tiny random model and something to trace on it."""
    n_tokens = draw(st.integers(2, 9))
    begin = draw(st.integers(0, n_tokens - 1))
    return {
        "family": draw(st.sampled_from(["gpt2", "llama", "mistral"])),
        "layers": draw(st.integers(1, 5)),
        "seed": draw(st.integers(0, 10_000)),
        "n_tokens": n_tokens,
        "span": (begin, draw(st.integers(begin + 1, n_tokens))),
        "window": draw(st.integers(1, 7)),
        "samples": draw(st.integers(1, 4)),
        "budget": Budget(draw(st.sampled_from([1, 5000, 1 << 30])), draw(st.integers(1, 60)), draw(st.integers(1, 60))),
    }


def built(family: str, layers: int, seed: int) -> tracer.LanguageModel:
    torch.manual_seed(seed)
    if family == "gpt2":
        torch_model = GPT2LMHeadModel(GPT2Config(n_layer=layers, n_embd=16, n_head=2, vocab_size=90, n_positions=32))
    else:
        config, architecture = {
            "llama": (LlamaConfig, LlamaForCausalLM),
            "mistral": (MistralConfig, MistralForCausalLM),
        }[family]
        options = {**llama_like(), "num_hidden_layers": layers, "vocab_size": 90}
        torch_model = architecture(config(**options, **({"sliding_window": 3} if family == "mistral" else {})))
    return tracer.load(torch_model.double(), check=False)


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_the_sweep_is_the_definition(case: dict[str, Any]) -> None:
    model = built(case["family"], case["layers"], case["seed"])
    generator = torch.Generator().manual_seed(case["seed"])
    ids = torch.randint(1, 90, (1, case["n_tokens"]), generator=generator)
    begin, end = span = case["span"]
    noise = GaussianNoise(3.0, 0.05).draws(
        samples=case["samples"], n_subject=end - begin, d_model=model.d_model, seed=case["seed"]
    )
    passes, sweep = Passes(model, ids, span, noise), Sweep(model, ids, span, noise, budget=case["budget"])
    answer, tokens = int(passes.clean_logits.argmax()), list(range(case["n_tokens"]))
    maps = {"state": (sweep.state_map(answer, tokens), passes.state_map(answer, tokens))}
    for kind in ("mlp", "attn"):
        window = case["window"]
        maps[kind] = (sweep.window_map(kind, answer, tokens, window), passes.window_map(kind, answer, tokens, window))
        maps[f"{kind} severed"] = (sweep.severed_map(kind, answer, tokens), passes.severed_map(kind, answer, tokens))
    for name, (fast, slow) in maps.items():
        torch.testing.assert_close(fast, slow, atol=1e-9, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
    state, corrupted = maps["state"][0], probability(sweep.corrupted_logits, answer)
    # Nothing before the subject acts; the last state is the answer's own; every value is a probability.
    torch.testing.assert_close(state[:begin], corrupted.expand_as(state[:begin]), atol=1e-12, rtol=0)
    clean = probability(sweep.clean_logits, answer)
    torch.testing.assert_close(state[-1, -1], clean.expand(case["samples"]), atol=1e-12, rtol=0)
    assert ((state >= 0) & (state <= 1)).all()


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
def test_without_noise_nothing_has_an_effect(case: dict[str, Any]) -> None:
    model = built(case["family"], case["layers"], case["seed"])
    ids = torch.randint(1, 90, (1, case["n_tokens"]), generator=torch.Generator().manual_seed(case["seed"]))
    begin, end = case["span"]
    noise = torch.zeros(case["samples"], end - begin, model.d_model, dtype=torch.float64)
    sweep, tokens = Sweep(model, ids, case["span"], noise, budget=case["budget"]), list(range(case["n_tokens"]))
    clean = probability(sweep.clean_logits, 7)
    for found in (
        sweep.state_map(7, tokens),
        sweep.window_map("mlp", 7, tokens, case["window"]),
        sweep.window_map("attn", 7, tokens, case["window"]),
        sweep.severed_map("mlp", 7, tokens),
    ):
        torch.testing.assert_close(found, clean.expand_as(found), atol=1e-12, rtol=0)
