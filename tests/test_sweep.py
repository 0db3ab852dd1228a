"""The sweep gives the definition's numbers, and both obey the laws of causal tracing."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import LAYERS, llama_like, noise_of
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import tracer
from tracer.answer import probability
from tracer.errors import OutOfMemoryError
from tracer.forward_pass import forward
from tracer.passes import Passes
from tracer.site import Site
from tracer.sweep import BatchSweep, Sweep
from tracer.sweep.budget import Budget
from tracer.sweep.packed_blocks import PackedBlocks
from tracer.sweep.self_test import self_test

IDS = torch.tensor([[11, 87, 254, 33, 480, 129, 64, 300]])
TOKENS = list(range(IDS.shape[1]))
SPANS = [(0, 2), (2, 5), (3, 4), (6, 8), (7, 8)]


@pytest.fixture(params=SPANS, ids=str)
def engines(family_model: tracer.LanguageModel, request: pytest.FixtureRequest) -> tuple[Passes, Sweep, int]:
    span = request.param
    noise = noise_of(3, span[1] - span[0])
    passes, sweep = Passes(family_model, IDS, span, noise), Sweep(family_model, IDS, span, noise)
    return passes, sweep, int(passes.clean_logits.argmax())


def test_state_maps_agree(engines: tuple[Passes, Sweep, int]) -> None:
    passes, sweep, answer = engines
    torch.testing.assert_close(
        sweep.state_map(answer, TOKENS), passes.state_map(answer, TOKENS), atol=1e-9, rtol=0, check_dtype=True
    )


@pytest.mark.parametrize("kind", ["mlp", "attn"])
@pytest.mark.parametrize("window", [1, 2, 3, 10])
def test_window_maps_agree(engines: tuple[Passes, Sweep, int], kind: str, window: int) -> None:
    passes, sweep, answer = engines
    slow = passes.window_map(kind, answer, TOKENS, window)
    torch.testing.assert_close(sweep.window_map(kind, answer, TOKENS, window), slow, atol=1e-9, rtol=0)


@pytest.mark.parametrize("path", ["mlp", "attn"])
def test_severed_maps_agree(engines: tuple[Passes, Sweep, int], path: str) -> None:
    passes, sweep, answer = engines
    slow = passes.severed_map(path, answer, TOKENS)
    torch.testing.assert_close(sweep.severed_map(path, answer, TOKENS), slow, atol=1e-9, rtol=0)


def maps_of(sweep: Sweep, answer: int) -> list[torch.Tensor]:
    return [
        sweep.state_map(answer, TOKENS),
        sweep.window_map("mlp", answer, TOKENS, 3),
        sweep.window_map("attn", answer, TOKENS, 3),
        sweep.severed_map("mlp", answer, TOKENS),
    ]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_chunks_bundles_and_threads_change_nothing(toy_model: tracer.LanguageModel, monkeypatch, threads: int) -> None:
    before = torch.get_num_threads()
    noise = noise_of(3, 2)
    whole = maps_of(Sweep(toy_model, IDS, (1, 3), noise), 5)
    monkeypatch.setattr("tracer.answer.ROWS", 3)
    monkeypatch.setattr("tracer.answer.VOCABULARY", 100)
    monkeypatch.setattr("tracer.sweep.batch_sweep.thread_count", lambda device, n_jobs: min(threads, n_jobs))
    small = Budget(state_bytes=4096, packed_tokens=8, bundle_pairs=9)
    cut = maps_of(Sweep(toy_model, IDS, (1, 3), noise, budget=small), 5)
    for one, other in zip(whole, cut, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)
    assert torch.get_num_threads() == before


def test_two_traces_at_once_do_not_meet(toy_model: tracer.LanguageModel) -> None:
    alone = [maps_of(Sweep(toy_model, IDS, (1, 3), level * noise_of(3, 2)), 5) for level in (1.0, 0.3)]
    for _ in range(10):
        with ThreadPoolExecutor(2) as pool:
            made = pool.map(lambda level: maps_of(Sweep(toy_model, IDS, (1, 3), level * noise_of(3, 2)), 5), (1.0, 0.3))
            for found, expected in zip(made, alone, strict=True):
                for one, other in zip(found, expected, strict=True):
                    torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


def test_a_plain_pass_in_another_thread_is_not_recorded(toy_model: tracer.LanguageModel) -> None:
    """One runs inside the recorded pass, at every block: neither sees the other's hooks."""
    plain = toy_model.torch(IDS.flip(1)).logits
    noise, passes = noise_of(3, 2), []
    alone = Sweep(toy_model, IDS, (1, 3), noise)
    recording = threading.get_ident()
    with ThreadPoolExecutor(1) as pool:

        def meanwhile(_module, _args) -> None:
            if threading.get_ident() == recording:
                passes.append(pool.submit(lambda: toy_model.torch(IDS.flip(1)).logits).result(60))

        handles = [block.register_forward_pre_hook(meanwhile) for block in toy_model.anatomy.blocks]
        try:
            beside = Sweep(toy_model, IDS, (1, 3), noise)
        finally:
            for handle in handles:
                handle.remove()
    assert len(passes) == LAYERS
    for logits in passes:
        torch.testing.assert_close(logits, plain, atol=1e-12, rtol=0)
    for one, other in zip(maps_of(beside, 5), maps_of(alone, 5), strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("path", "computed"), [("mlp", 5), ("attn", 6)])
def test_a_held_mlp_is_not_computed_where_it_is_held(
    family_model: tracer.LanguageModel, path: str, computed: int
) -> None:
    """A row for each block below, with the 5 tokens after the restored one, and it unless held; the last needs one."""
    sweep, counts = Sweep(family_model, IDS, (2, 4), noise_of(1, 2)), [0] * LAYERS

    def count(layer: int):
        def hook(_module, args) -> None:
            counts[layer] += args[0].shape[:-1].numel()

        return hook

    handles = [family_model.anatomy.value_matrix(n).register_forward_pre_hook(count(n)) for n in range(LAYERS)]
    try:
        sweep.severed_map(path, 5, [2])
    finally:
        for handle in handles:
            handle.remove()
    assert counts == [0, computed, 2 * computed, 3]


def test_a_head_whose_forward_was_replaced_is_called(toy_model: tracer.LanguageModel) -> None:
    head = toy_model.torch.lm_head
    original = head.forward
    head.forward = lambda hidden: 2 * original(hidden)
    passes, sweep = (engine(toy_model, IDS, (1, 3), noise_of(2, 2)) for engine in (Passes, Sweep))
    torch.testing.assert_close(sweep.state_map(5, TOKENS), passes.state_map(5, TOKENS), atol=1e-9, rtol=0)


def test_a_trace_repeats_bit_for_bit(toy_model: tracer.LanguageModel) -> None:
    sweep = Sweep(toy_model, IDS, (1, 3), noise_of(3, 2))
    for one, other in zip(maps_of(sweep, 5), maps_of(sweep, 5), strict=True):
        assert torch.equal(one, other)


def test_facts_walked_together_have_the_numbers_they_have_alone(toy_model: tracer.LanguageModel) -> None:
    ids, span, noise, answers = torch.cat((IDS, IDS.flip(1), (IDS + 7) % 500)), (2, 4), noise_of(3, 2), [5, 9, 31]
    together = BatchSweep(toy_model, ids, span, noise)
    found = {
        "state": together.state_maps(answers, TOKENS),
        "mlp": together.window_maps("mlp", answers, TOKENS, 3),
        "attn": together.window_maps("attn", answers, TOKENS, 3),
        "severed": together.severed_maps("mlp", answers, TOKENS),
    }
    for number, answer in enumerate(answers):
        sweep = Sweep(toy_model, ids[number : number + 1], span, noise)
        for (name, of_facts), expected in zip(found.items(), maps_of(sweep, answer), strict=True):
            torch.testing.assert_close(of_facts[number], expected, atol=1e-12, rtol=0, msg=name)


def test_less_is_held_at_once_when_memory_runs_out(toy_model: tracer.LanguageModel, monkeypatch) -> None:
    sweep = Sweep(toy_model, IDS, (1, 3), noise_of(3, 2))
    whole, original = sweep.state_map(5, TOKENS), sweep.batch.blocks.run

    def greedy(_self, layer, packing, draws):
        run = original(layer, packing, draws)

        def checked(hidden, which):
            if hidden.shape[0] * hidden.shape[1] > 100:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate many bytes.")
            return run(hidden, which)

        return checked

    monkeypatch.setattr(PackedBlocks, "run", greedy)
    torch.testing.assert_close(sweep.state_map(5, TOKENS), whole, atol=1e-12, rtol=0)
    assert sweep.batch.budget.packed_tokens < Budget().packed_tokens


def test_memory_that_runs_out_for_good_is_said_with_what_to_write(toy_model: tracer.LanguageModel, monkeypatch) -> None:
    sweep = Sweep(toy_model, IDS, (1, 3), noise_of(3, 2))

    def greedy(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate many bytes.")

    monkeypatch.setattr(PackedBlocks, "run", greedy)
    with pytest.raises(OutOfMemoryError, match="samples=1, or a smaller max_bytes"):
        sweep.state_map(5, TOKENS)


def test_another_error_is_not_taken_for_want_of_memory(toy_model: tracer.LanguageModel, monkeypatch) -> None:
    sweep, before = Sweep(toy_model, IDS, (1, 3), noise_of(3, 2)), torch.get_num_threads()
    monkeypatch.setattr(PackedBlocks, "run", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sweep.state_map(5, TOKENS)
    assert torch.get_num_threads() == before and sweep.batch.budget == Budget()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in toy_model.torch.modules())


@pytest.mark.parametrize("path", ["mlp", "attn"])
def test_severing_at_the_values_of_other_draws_agrees_too(family_model: tracer.LanguageModel, path: str) -> None:
    noise, frozen = noise_of(3, 2), 0.5 * noise_of(3, 2).flip(0)
    passes = Passes(family_model, IDS, (2, 4), noise, frozen_noise=frozen)
    sweep = Sweep(family_model, IDS, (2, 4), noise, frozen_noise=frozen)
    found = sweep.severed_map(path, 5, TOKENS)
    torch.testing.assert_close(found, passes.severed_map(path, 5, TOKENS), atol=1e-9, rtol=0)
    own = Sweep(family_model, IDS, (2, 4), noise).severed_map(path, 5, TOKENS)
    assert (found - own).abs().max() > 1e-6


def test_a_choice_of_tokens_gives_those_rows_of_the_map(toy_model: tracer.LanguageModel) -> None:
    sweep = Sweep(toy_model, IDS, (1, 3), noise_of(3, 2))
    answer = int(sweep.clean_logits.argmax())
    whole = sweep.state_map(answer, TOKENS)
    for chosen in ([2], [5, 7], [1, 2, 3], [7, 2, 5], [1, 1, 6]):
        torch.testing.assert_close(sweep.state_map(answer, chosen), whole[chosen], atol=1e-12, rtol=0)


def test_restoring_every_token_of_a_layer_gives_the_clean_run(family_model: tracer.LanguageModel) -> None:
    passes = Passes(family_model, IDS, (1, 3), noise_of(2, 2))
    for layer in range(LAYERS):
        sites = [Site("state", layer, token) for token in TOKENS]
        held = {site: passes.clean.kept["state"][layer][0, site.token] for site in sites}
        restored = passes.restored(held)
        torch.testing.assert_close(restored, passes.clean_logits.expand_as(restored), atol=1e-10, rtol=0)


def test_a_held_site_moves_the_logits(family_model: tracer.LanguageModel) -> None:
    plain = forward(family_model, IDS).logits
    for kind in ("state", "mlp", "attn"):
        site = Site(kind, 1, 3)
        moved = forward(family_model, IDS, held={site: torch.ones(family_model.d_model).double()}).logits
        assert (moved - plain).abs().max() > 1e-3, site


def test_a_held_site_holds_what_the_sub_layer_adds_to_the_residual_stream(family_model: tracer.LanguageModel) -> None:
    zero = torch.zeros(family_model.d_model).double()
    held = {Site(kind, 2, token): zero for kind in ("mlp", "attn") for token in TOKENS}
    run = forward(family_model, IDS, held=held, keep=True)
    torch.testing.assert_close(run.kept["state"][2], run.kept["state"][1], atol=1e-12, rtol=0)


def test_effects_before_the_subject_are_zero_by_the_definition(family_model: tracer.LanguageModel) -> None:
    passes = Passes(family_model, IDS, (3, 5), noise_of(2, 2))
    answer = int(passes.clean_logits.argmax())
    corrupted = probability(passes.corrupted_logits, answer)
    for restored in (passes.state_map(answer, [0, 2]), passes.window_map("mlp", answer, [0, 2], 3)):
        torch.testing.assert_close(restored, corrupted.expand_as(restored), atol=1e-12, rtol=0)


def test_the_sweep_leaves_no_hook_behind(toy_model: tracer.LanguageModel) -> None:
    sweep = Sweep(toy_model, IDS, (1, 3), noise_of(2, 2))
    sweep.severed_map("mlp", 5, TOKENS)
    sweep.window_map("attn", 5, TOKENS, 2)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in toy_model.torch.modules())


def test_the_self_test_names_the_site_and_traces_fall_back(toy_model: tracer.LanguageModel, monkeypatch) -> None:
    assert self_test(toy_model) < 1e-9
    original = BatchSweep.window_maps
    monkeypatch.setattr(BatchSweep, "window_maps", lambda *args: original(*args) * 0.9)
    with pytest.warns(tracer.TracerWarning, match=r"'gpt2'.*layer ., token . .mlp.*definition"):
        model = tracer.load(toy_model.torch)
    ids = tuple(IDS[0].tolist())
    result = tracer.trace(
        model, tracer.TokenizedFact(ids, (1, 3)), kinds=["mlp"], samples=2, corruption=tracer.GaussianNoise(3, 0.02)
    )
    assert result.settings.engine == "passes"


def test_the_self_test_finds_a_site_that_does_nothing_and_attention_that_looks_ahead(monkeypatch) -> None:
    torch.manual_seed(0)
    torch_model = LlamaForCausalLM(LlamaConfig(**llama_like())).double()
    model = tracer.load(torch_model, check=False)
    monkeypatch.setattr("tracer.sweep.self_test.forward", lambda model, ids, **_: forward(model, ids))
    with pytest.raises(tracer.SweepMismatchError, match="does not reach the logits"):
        self_test(model)
    monkeypatch.undo()
    monkeypatch.setattr("tracer.sweep.self_test.SPAN", (2, 4))
    for layer in torch_model.model.layers:
        original = layer.self_attn.forward

        def everything(*args, original=original, **kwargs):
            return original(*args, **{**kwargs, "attention_mask": torch.zeros(1, 1, 6, 6, dtype=torch.float64)})

        layer.self_attn.forward = everything
    with pytest.raises(tracer.SweepMismatchError, match="before the corruption"):
        self_test(model)


def test_severing_uses_the_same_noise_as_the_run_it_is_put_into(toy_model: tracer.LanguageModel) -> None:
    """Holding corrupted values below the restored layer changes nothing: they are the run's own."""
    passes = Passes(toy_model, IDS, (1, 3), noise_of(2, 2))
    token, top = 2, LAYERS - 1
    severed = passes.restored(passes.severed("mlp", token, top))
    plain = passes.restored(passes.state(token, top))
    np.testing.assert_allclose(severed, plain, atol=1e-12)


OTHER_FAMILIES = {
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": 3}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {}),
    "gemma": (GemmaConfig, GemmaForCausalLM, {}),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM, {"sliding_window": 3}),
    "llama, eager attention": (LlamaConfig, LlamaForCausalLM, {"attn_implementation": "eager"}),
}


@pytest.mark.parametrize("name", OTHER_FAMILIES)
def test_the_other_known_families_agree_too(name: str) -> None:
    """Eager attention (all that Gemma 2 has) takes its softmax in float32, so 1e-9 is out of its reach."""
    config, architecture, options = OTHER_FAMILIES[name]
    torch.manual_seed(0)
    built = config(**llama_like(), **options)
    model = tracer.load(architecture(built).double())
    tolerance = 1e-6 if model.torch.config._attn_implementation == "eager" else 1e-9
    noise = noise_of(2, 2)
    passes, sweep = Passes(model, IDS, (2, 4), noise), Sweep(model, IDS, (2, 4), noise)
    answer = int(passes.clean_logits.argmax())
    maps = [(sweep.state_map(answer, TOKENS), passes.state_map(answer, TOKENS))]
    for kind in ("mlp", "attn"):
        maps.append((sweep.window_map(kind, answer, TOKENS, 3), passes.window_map(kind, answer, TOKENS, 3)))
        maps.append((sweep.severed_map(kind, answer, TOKENS), passes.severed_map(kind, answer, TOKENS)))
    for fast, slow in maps:
        torch.testing.assert_close(fast, slow, atol=tolerance, rtol=0)


@pytest.mark.parametrize("n_layers", [1, 2])
def test_very_shallow_models_agree(n_layers: int) -> None:
    torch.manual_seed(0)
    model = tracer.load(LlamaForCausalLM(LlamaConfig(**{**llama_like(), "num_hidden_layers": n_layers})).double())
    noise = noise_of(1, 2)
    passes, sweep = Passes(model, IDS, (2, 4), noise), Sweep(model, IDS, (2, 4), noise)
    for fast, slow in (
        (sweep.state_map(7, TOKENS), passes.state_map(7, TOKENS)),
        (sweep.window_map("mlp", 7, TOKENS, 10), passes.window_map("mlp", 7, TOKENS, 10)),
    ):
        torch.testing.assert_close(fast, slow, atol=1e-9, rtol=0)
