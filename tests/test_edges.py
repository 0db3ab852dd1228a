"""Edges: integrated gradients are complete, and a patched path is what it is by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from families import FAMILIES

import tracer
from tracer.errors import AnatomyError, FileFormatError, SiteError
from tracer.first_order.edge_scores import Edge, EdgeScores, Input, Node
from tracer.first_order.edges import attribute_edges, path_patch
from tracer.first_order.heads import HEAD_NAMES as WITH_HEADS

FACT = tracer.TokenizedFact(tuple(toys.IDS[0].tolist()), (1, 6), answer_ids=(5,))
NOISE = tracer.GaussianNoise(3.0, 0.1)
OPTIONS = {"samples": 2, "corruption": NOISE}
EMBEDDING = Node("embedding")


def opened(model) -> tracer.LanguageModel:
    return tracer.load(model, check=False)


def test_in_a_linear_model_edges_are_complete_and_equal_to_patched_paths() -> None:
    model = opened(toys.linear_gpt2())
    found = attribute_edges(model, FACT, steps=1, metric="logit", **OPTIONS)
    total = found.clean - found.corrupted
    assert abs(total) > 0.01
    assert np.nansum(found.scores[found.sources.index(EMBEDDING)]) == pytest.approx(total, abs=1e-9)
    assert found.scores[:, found.targets.index(Input("logits", 3))].sum() == pytest.approx(total, abs=1e-9)
    edges = [edge for edge, _ in found.top(10_000)]
    exact = path_patch(model, FACT, edges, metric="logit", **OPTIONS).mean(1)
    np.testing.assert_allclose([score for _, score in found.top(10_000)], exact, atol=1e-12)
    assert (abs(exact) > 1e-4).sum() > 20


@pytest.mark.parametrize("build", [toys.gpt2, toys.llama])
def test_the_embeddings_edges_sum_to_the_total_effect_as_steps_grow(build) -> None:
    model, missing = opened(build(2)), []
    for steps in (1, 4, 64):
        found = attribute_edges(model, FACT, steps=steps, metric="logit", **OPTIONS)
        total = found.clean - found.corrupted
        missing.append(abs(np.nansum(found.scores[found.sources.index(EMBEDDING)]) - total))
    assert abs(total) > 0.05
    assert missing[0] > missing[1] > missing[2] and missing[2] < 2e-3 * abs(total)


@pytest.mark.parametrize("name", ["GPT-2", "Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "StarCoder2"])
def test_at_little_noise_every_edge_scores_what_its_path_does(name: str) -> None:
    """Queries, keys and values of grouped heads, MLPs and logits, each through its own norm."""
    model = opened(FAMILIES[name].build())
    options = {"samples": 1, "corruption": tracer.GaussianNoise(1.0, 1e-4)}
    found = attribute_edges(model, FACT, steps=1, metric="logit", **options)
    edges = [edge for edge, _ in found.top(100_000)]
    assert {edge.target.kind for edge in edges} == {"q", "k", "v", "mlp", "logits"}
    chosen = [edge for kind in ("q", "k", "v", "mlp", "logits") for edge in edges if edge.target.kind == kind][::7]
    exact = path_patch(model, FACT, chosen, metric="logit", **options).mean(1)
    scores = np.array([found.scores[found.sources.index(e.source), found.targets.index(e.target)] for e in chosen])
    for kind in ("q", "k", "v", "mlp", "logits"):
        these = np.array([edge.target.kind == kind for edge in chosen])
        scale = abs(exact[these]).max()
        assert scale > 1e-6, kind
        np.testing.assert_allclose(scores[these], exact[these], atol=0.05 * scale, err_msg=kind)


def embeddings_by_hand(torch_model) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean and corrupted residual stream below block 0 of a toy GPT-2, [token, d_model]."""
    draws = NOISE.draws(samples=1, n_subject=5, d_model=toys.WIDTH, seed=1)
    inner = torch_model.transformer
    clean = inner.wte(toys.IDS[0]) + inner.wpe(torch.arange(6))
    corrupted = clean.clone()
    corrupted[1:] += draws[0]
    return clean, corrupted


def attention_by_hand(block, query_input, key_input, value_input) -> torch.Tensor:
    """What each head of a GPT-2 block adds at the last token, [head, d_model]; inputs [head, token, d_model]."""
    weight, bias = block.attn.c_attn.weight, block.attn.c_attn.bias
    out, width, size = block.attn.c_proj.weight, toys.WIDTH, toys.WIDTH // 2
    added = []
    for head in range(2):
        q, k, v = (
            block.ln_1(read[head]) @ weight[:, part * width + head * size :][:, :size]
            + bias[part * width + head * size :][:size]
            for part, read in enumerate((query_input, key_input, value_input))
        )
        added.append((q[-1] @ k.T / size**0.5).softmax(-1) @ v @ out[head * size :][:size])
    return torch.stack(added)


@pytest.mark.parametrize("kind", ["q", "k", "v", "mlp", "logits"])
@torch.no_grad()
def test_a_path_from_the_embedding_is_patched_as_by_hand(kind: str) -> None:
    torch_model = toys.gpt2(1, scale=0.5)
    block, inner = torch_model.transformer.h[0], torch_model.transformer
    clean, corrupted = embeddings_by_hand(torch_model)

    def logit(patched: str) -> float:
        def read(role: str) -> torch.Tensor:  # head 1 alone reads the clean embedding
            return torch.stack([corrupted, clean if patched == role else corrupted])

        attended = attention_by_hand(block, read("q"), read("k"), read("v")).sum(0) + block.attn.c_proj.bias
        middle, change = corrupted[-1] + attended, clean[-1] - corrupted[-1]
        above = middle + block.mlp(block.ln_2(middle + (change if patched == "mlp" else 0)))
        final = inner.ln_f(above + (change if patched == "logits" else 0))
        return float(torch_model.lm_head.weight[5] @ final)

    target = {"mlp": Input("mlp", 0), "logits": Input("logits", 1)}.get(kind, Input(kind, 0, 1))  # pyright: ignore - q, k or v
    found = path_patch(
        opened(torch_model), FACT, [Edge(EMBEDDING, target)], metric="logit", samples=1, corruption=NOISE
    )
    by_hand = logit(kind) - logit("nothing")
    assert abs(by_hand) > 1e-3
    np.testing.assert_allclose(found, [[by_hand]], atol=1e-12)


@torch.no_grad()
def test_a_path_from_a_head_to_the_mlp_is_patched_as_by_hand() -> None:
    torch_model = toys.gpt2(1, scale=0.5)
    block, inner = torch_model.transformer.h[0], torch_model.transformer
    clean, corrupted = (value.expand(2, -1, -1) for value in embeddings_by_hand(torch_model))
    heads_clean, heads = (attention_by_hand(block, read, read, read) for read in (clean, corrupted))
    middle = corrupted[0, -1] + heads.sum(0) + block.attn.c_proj.bias

    def logit(change: torch.Tensor) -> torch.Tensor:
        return torch_model.lm_head.weight[5] @ inner.ln_f(middle + block.mlp(block.ln_2(middle + change)))

    by_hand = float(logit(heads_clean[1] - heads[1]) - logit(torch.zeros(toys.WIDTH).double()))
    edge = Edge(Node("head", 0, 1), Input("mlp", 0))
    found = path_patch(opened(torch_model), FACT, [edge], metric="logit", samples=1, corruption=NOISE)
    assert abs(by_hand) > 1e-3
    np.testing.assert_allclose(found, [[by_hand]], atol=1e-12)


def test_results_are_tabled_checked_saved_and_read_again(tmp_path: Path) -> None:
    model = opened(toys.llama(2))
    found = attribute_edges(model, FACT, steps=2, exact=3, **OPTIONS)
    top = found.top(3)
    sizes = np.sort(abs(found.scores[~np.isnan(found.scores)]))
    np.testing.assert_array_equal([abs(score) for _, score in top], sizes[::-1][:3])
    frame = found.to_frame()
    # embedding, 4 heads and MLP a layer; 4 + 2 + 2 head inputs and MLP a layer, logits
    assert len(frame) == (9 + 9 + 1) + 4 * (1 + 9 + 1) + (9 + 1) + 4 * (1 + 1) + 1
    assert not frame.score.isna().any() and frame.exact.notna().sum() == 3
    exact = path_patch(model, FACT, [edge for edge, _ in top], **OPTIONS).mean(1)
    checked = frame.set_index(["source", "target"]).exact
    for (edge, _), effect in zip(top, exact, strict=True):
        assert checked[str(edge.source), str(edge.target)] == pytest.approx(effect, abs=1e-14)
    found.save(tmp_path / "edges.safetensors")
    loaded = EdgeScores.load(tmp_path / "edges.safetensors")
    np.testing.assert_array_equal(loaded.scores, found.scores)
    np.testing.assert_array_equal(loaded.exact, found.exact)
    for name in ("sources", "targets", "clean", "corrupted", "answer_id", "metric", "steps", "settings"):
        assert getattr(loaded, name) == getattr(found, name), name
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "edges.safetensors").read_bytes()[:100])
    with pytest.raises(FileFormatError, match="not a whole"):
        EdgeScores.load(tmp_path / "cut.safetensors")
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.torch.modules())


@pytest.mark.parametrize("name", FAMILIES)
def test_other_families_are_refused_by_name(name: str) -> None:
    model = opened(FAMILIES[name].build())
    if model.anatomy.family in WITH_HEADS:
        assert len(attribute_edges(model, FACT, steps=1, **OPTIONS).top(5)) == 5
        return
    with pytest.raises(AnatomyError, match=f"heads of model type '{model.anatomy.family}'.*is not known"):
        attribute_edges(model, FACT, steps=1, **OPTIONS)


def test_a_model_whose_nodes_do_not_add_up_is_refused() -> None:
    torch_model = toys.gpt2(2)
    torch_model.transformer.h[1].register_forward_hook(lambda _module, _args, output: 2 * output)
    with pytest.raises(AnatomyError, match="do not add up to its residual stream"):
        attribute_edges(opened(torch_model), FACT, **OPTIONS)


WRONG = [
    Edge(Node("head", 0, 4), Input("mlp", 1)),
    Edge(Node("head", 0, 0), Input("k", 1, 2)),  # two key heads serve four query heads
    Edge(Node("mlp", 1), Input("v", 1, 0)),
    Edge(Node("mlp", 1), Input("mlp", 1)),
    Edge(Node("embedding", 1), Input("mlp", 1)),
    Edge(EMBEDDING, Input("logits", 1)),
    Edge(EMBEDDING, Input("mlp", 2)),
]


@pytest.mark.parametrize("edge", WRONG, ids=str)
def test_edges_that_are_not_there_are_named(edge: Edge) -> None:
    with pytest.raises(SiteError, match="There is no edge .* 2 layers of 4 heads"):
        path_patch(opened(toys.llama(2)), FACT, [edge], **OPTIONS)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"steps": 0}, "steps=0"), ({"exact": -1}, "exact=-1"), ({"metric": "rank"}, "no metric 'rank'")],
)
def test_bad_input_is_named(options: dict, said: str) -> None:
    model = opened(toys.gpt2(1))
    with pytest.raises(SiteError, match=said):
        attribute_edges(model, FACT, **{**OPTIONS, **options})
    edge = Edge(EMBEDDING, Input("mlp", 0))
    for edges, metric, reason in (
        ([edge], "rank", "no metric 'rank'"),
        ([], "logit", "No edges to patch"),
        ([(edge, 0.1)], "logit", "for edge, _ in scores.top"),
        ([Edge(Node("attn", 0), Input("mlp", 0))], "logit", "There is no edge"),  # pyright: ignore[reportArgumentType]
    ):
        with pytest.raises(SiteError, match=reason):
            path_patch(model, FACT, edges, metric=metric, **OPTIONS)  # pyright: ignore[reportArgumentType]
    with pytest.raises(SiteError, match="k=0"):
        attribute_edges(model, FACT, steps=1, **OPTIONS).top(0)
