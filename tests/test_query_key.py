"""Queries and keys: the plain estimate fails where attention is saturated, the fixed one does not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import toys
from families import FAMILIES
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

import tracer
from tracer.anatomy.hidden import hidden_of, with_hidden
from tracer.errors import AnatomyError, FileFormatError, SiteError
from tracer.first_order.query_key import attribute_queries_and_keys
from tracer.sweep.hooks import output_changed

FACT = tracer.TokenizedFact(tuple(toys.IDS[0].tolist()), (1, 6), answer_ids=(5,))
NO_SDPA = {"GPT-Neo", "GPT-J", "BLOOM", "Gemma 2"}


class Swap(TorchFunctionMode):
    """Row 1 attends with row 0's query or key of one token and head, in one layer."""

    def __init__(self, kind: str, layer: int, head: int, token: int) -> None:
        super().__init__()
        self.kind, self.layer, self.head, self.token, self.calls = kind, layer, head, token, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is scaled_dot_product_attention:
            self.calls += 1
            if self.calls == self.layer + 1:
                query, key, value = (each.clone() for each in args[:3])
                groups = query.shape[1] // key.shape[1]
                key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
                changed = query if self.kind == "query" else key
                changed[1, self.head, self.token] = changed[0, self.head, self.token]
                args = (query, key, value)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def exact(model, fact, noise, kind: str, layer: int, head: int, token: int, measure) -> float:
    """What restoring one query or key does, measured on last-position logits."""
    begin, end = fact.subject_span
    draws = noise.draws(samples=1, n_subject=end - begin, d_model=model.anatomy.embedding_size, seed=1)

    def corrupt(embedded: torch.Tensor) -> torch.Tensor:
        embedded = embedded.clone()
        embedded[1:, begin:end] += draws
        return embedded

    ids = torch.tensor([fact.token_ids]).expand(2, -1)
    with output_changed(model.anatomy.embedding, corrupt):
        plain = model.torch(ids).logits[1, -1]
        with Swap(kind, layer, head, token):
            restored = model.torch(ids).logits[1, -1]
    return float(measure(restored) - measure(plain))


def saturated_model() -> tracer.LanguageModel:
    """Head 0 of one linear layer: the query is coordinate 0, the key coordinate 1, the value coordinate 2.

    Token 0 alone holds a value, and it alone has a positive key; the answer's logit is what is attended to.
    """
    model, width = toys.linear_gpt2(1), toys.WIDTH
    block = model.transformer.h[0]
    with torch.no_grad():
        for weight in (*block.parameters(), *model.transformer.wpe.parameters(), *model.lm_head.parameters()):
            weight.data = torch.zeros_like(weight)
        model.transformer.wte.weight = torch.nn.Parameter(torch.zeros(toys.VOCABULARY, width).double())
        block.attn.c_attn.weight[0, 0] = 100.0
        block.attn.c_attn.weight[1, width] = 1.0
        block.attn.c_attn.weight[2, 2 * width] = 1.0
        block.attn.c_proj.weight[0, 3] = 1.0
        embeddings = model.transformer.wte.weight
        embeddings[:, 1] = -1.0
        embeddings[toys.IDS[0, 0], 1:3] = 1.0
        embeddings[toys.IDS[0, -1], 0] = -1.0  # the noise makes it positive
        model.lm_head.weight = torch.nn.Parameter(torch.zeros_like(model.lm_head.weight))
        model.lm_head.weight[5, 3] = 1.0
    return tracer.load(model, check=False)


def test_a_saturated_query_is_missed_plainly_and_found_by_the_fix(monkeypatch) -> None:
    """Linear after the softmax, and the answer's logit as metric: the fixed estimate is the exact effect."""
    monkeypatch.setattr("tracer.first_order.query_key.probability", lambda logits, answer: logits[..., answer])
    model, noise = saturated_model(), tracer.GaussianNoise(1.0, 1.5)
    fact = dataclasses.replace(FACT, subject_span=(5, 6))
    effect = exact(model, fact, noise, "query", 0, 0, 5, lambda logits: logits[5])
    plain, fixed = (
        attribute_queries_and_keys(model, fact, method=method, samples=1, corruption=noise).effects["query"][5, 0, 0, 0]
        for method in ("atp", "qk-fix")
    )
    assert effect < -0.9
    assert abs(plain) < 1e-6
    assert fixed == pytest.approx(effect, abs=1e-12)


def test_a_saturated_key_is_missed_plainly_and_found_by_the_fix(monkeypatch) -> None:
    monkeypatch.setattr("tracer.first_order.query_key.probability", lambda logits, answer: logits[..., answer])
    model, draw = saturated_model(), tracer.GaussianNoise(1.0, 6.0)
    with torch.no_grad():
        model.anatomy.embedding.weight[toys.IDS[0, -1], 0] = 1.0  # looks for positive keys
        model.anatomy.embedding.weight[toys.IDS[0, 0], 1] = 2.0
    # Seed 1's noise on coordinate 1 is negative: it takes away the key that the last token looks for.
    assert draw.draws(samples=1, n_subject=1, d_model=2, seed=1)[0, 0, 1] < 0
    fact = dataclasses.replace(FACT, subject_span=(0, 1))
    effect = exact(model, fact, draw, "key", 0, 0, 0, lambda logits: logits[5])
    plain, fixed = (
        attribute_queries_and_keys(model, fact, method=method, samples=1, corruption=draw).effects["key"][0, 0, 0, 0]
        for method in ("atp", "qk-fix")
    )
    assert abs(effect) > 0.5
    assert abs(plain) < 1e-6
    assert fixed == pytest.approx(effect, abs=1e-12)


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - NO_SDPA))
def test_at_little_noise_both_methods_give_the_exact_effect(monkeypatch, name: str) -> None:
    monkeypatch.setattr("tracer.first_order.query_key.probability", lambda logits, answer: logits[..., answer])
    model, noise = tracer.load(FAMILIES[name].build(), check=False), tracer.GaussianNoise(1.0, 1e-3)
    cells = [(5, 0, 0), (2, 1, 3), (5, 2, 1), (3, 2, 2), (5, 3, 3)]
    for kind in ("query", "key"):
        by_hand = np.array(
            [exact(model, FACT, noise, kind, layer, head, token, lambda logits: logits[5])
             for token, layer, head in cells]
        )  # fmt: skip
        scale = abs(by_hand).max()
        assert scale > 1e-6  # of which float32 norms and softmaxes blur about 1e-7
        for method in ("atp", "qk-fix"):
            found = attribute_queries_and_keys(model, FACT, method=method, samples=1, corruption=noise).effects[kind]
            assert found.shape == (6, 4, 4, 1)
            estimates = [found[cell][0] for cell in cells]
            np.testing.assert_allclose(estimates, by_hand, atol=0.06 * scale + 1e-7, err_msg=f"{kind} {method}")


def test_atp_star_is_the_mean_size_of_the_fixed_estimates_with_each_layer_s_additions_cut_off() -> None:
    model, noise = tracer.load(toys.llama().requires_grad_(True), check=False), tracer.GaussianNoise(3.0, 0.1)
    options = {"samples": 2, "corruption": noise}
    found = attribute_queries_and_keys(model, FACT, method="atp*", **options)

    def cut(_module, _args, output):
        added = hidden_of(output)
        return with_hidden(output, added.detach() + 0 * added)

    sizes: dict[str, np.ndarray] = {"query": np.zeros(()), "key": np.zeros(())}
    for layer in range(model.n_layers):
        modules = [model.anatomy.site_module(kind, layer) for kind in ("attn", "mlp")]
        handles = [module.register_forward_hook(cut) for module in modules]
        for kind, effects in attribute_queries_and_keys(model, FACT, method="qk-fix", **options).effects.items():
            assert np.abs(effects[:, layer]).max() == 0
            sizes[kind] = sizes[kind] + np.abs(effects)
        for handle in handles:
            handle.remove()
    for kind, size in sizes.items():
        np.testing.assert_allclose(found.effects[kind], size / (model.n_layers - 1), rtol=1e-10, atol=1e-18)
        assert found.effects[kind].max() > 1e-5
    with pytest.raises(AnatomyError, match='drops one layer of several.*method="qk-fix"'):
        attribute_queries_and_keys(tracer.load(toys.llama(1), check=False), FACT, method="atp*", **options)


def test_saved_maps_are_the_same_maps(tmp_path) -> None:
    model = tracer.load(toys.llama(2), check=False)
    found = attribute_queries_and_keys(model, FACT, samples=2, corruption=tracer.GaussianNoise(3.0, 0.1))
    found.save(tmp_path / "maps.safetensors")
    again = tracer.QueryKeyMaps.load(tmp_path / "maps.safetensors")
    assert (again.fact, again.settings, again.answer_id, again.clean) == (
        found.fact,
        found.settings,
        found.answer_id,
        found.clean,
    )
    for kind in ("query", "key"):
        np.testing.assert_array_equal(again.effects[kind], found.effects[kind])
    np.testing.assert_array_equal(again.corrupted_samples, found.corrupted_samples)
    with pytest.raises(FileFormatError, match="'queries and keys', where 'trace' is expected"):
        tracer.TraceResult.load(tmp_path / "maps.safetensors")


@pytest.mark.parametrize("name", sorted(NO_SDPA))
def test_attention_that_cannot_be_reached_is_refused(name: str) -> None:
    model = tracer.load(FAMILIES[name].build(), check=False)
    with pytest.raises(AnatomyError, match=f"0 of 4 layers of model type '{model.anatomy.family}'.*sdpa"):
        attribute_queries_and_keys(model, FACT, samples=1, corruption=tracer.GaussianNoise(1.0, 0.1))


def test_methods_are_named_and_tables_hold_every_cell() -> None:
    model, noise = tracer.load(toys.llama(2), check=False), tracer.GaussianNoise(3.0, 0.1)
    with pytest.raises(SiteError, match="no method 'graddrop'. Choose from atp, qk-fix, atp"):
        attribute_queries_and_keys(model, FACT, method="graddrop")  # pyright: ignore[reportArgumentType] - the mistake
    found = attribute_queries_and_keys(model, FACT, samples=3, corruption=noise)
    frame = found.to_frame().set_index(["kind", "token", "layer", "head"]).indirect_effect
    assert len(frame) == 2 * 6 * 2 * 4
    assert frame["key", 3, 1, 2] == pytest.approx(found.effects["key"][3, 1, 2].mean())
    assert found.corrupted_samples.shape == (3,) and found.settings.engine == "qk-fix, queries and keys"
