"""The benchmarks measure what they say: same numbers by both procedures, operations counted right."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import attribution
import growth
import numpy as np
import operations
import prompts
import pytest
import tracing
from transformers import LlamaConfig


def test_both_procedures_give_the_same_numbers_and_the_counts_fit() -> None:
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=1200,
        initializer_range=0.2,
    )
    model = prompts.random_model(config)
    prompt = prompts.random_prompt(model, 7, (2, 4), 3)
    recording = operations.counted_operations(model, prompt, None)
    for timing in tracing.compare(model, prompt, samples=3, sites=60, repeats=2):
        assert timing.difference < 1e-6, timing.map
        # Attention scores, a window's first block and the last block's keys come on top of the fewest.
        assert 1.0 <= (timing.operations - recording) / timing.least < 1.3, timing
        assert timing.straightforward > 0 and timing.sweep > 0


def test_the_growth_figure_is_drawn_from_its_table(tmp_path: Path) -> None:
    rows = [
        {"axis": axis, "tokens": 6, "layers": 6, "samples": 5, "straightforward": 8.0 * value, "sweep": 1.0 * value}
        | {axis: value}
        for axis in ("tokens", "layers", "samples")
        for value in (6, 12)
    ]
    table = growth.growth_table(rows)
    assert table.count("8.0x") == 6 and "| 12 | 6 | 5 | 96.0 s | 12.00 s | 8.0x |" in table
    growth.plot_growth(rows, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 5000


def test_first_order_maps_are_compared_with_exact_ones_and_a_second_run_reads_them(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    traced, real = [], attribution.compared
    monkeypatch.setattr(attribution, "compared", lambda *arguments: traced.append(1) or real(*arguments))
    options = ["--model", str(model_folder), "--n", "2", "--samples", "2", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["attribution.py", *options])
    tables = []
    for _ in range(2):
        attribution.main()
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1] and len(traced) == 2
    records = [json.loads(path.read_text()) for path in (tmp_path / "tiny-window1-samples2").iterdir()]
    assert tables[0].startswith("2 facts\n")
    for kind in ("state", "mlp", "attn"):
        found = [record[kind]["correlation"] for record in records]
        assert all(-1 <= correlation <= 1 for correlation in found)
        assert f"| {kind} | {np.mean(found):.3f} ± " in tables[0]
