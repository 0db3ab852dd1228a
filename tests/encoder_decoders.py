"""Tiny encoder-decoders for the tests: a tokenizer as T5's, models of both designs, and one that knows facts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from conftest import make_tokenizer
from tokenizers import processors
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

import tracer

LIES_IN = {"Paris": "France", "Milan": "Italy", "Bonn": "Germany", "Kyoto": "Japan"}
WAYS = ("The country of {} is <extra_id_0>.", "The city {} lies in <extra_id_0>")
WIDTH, LAYERS = 32, 2  # blocks of the encoder; the decoder has one more


def closing_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer that closes each text, as T5's does, and knows a sentinel."""
    found = make_tokenizer(bos=False)
    found.add_special_tokens({"additional_special_tokens": ["<extra_id_0>"]})
    end = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 2)])
    found.backend_tokenizer.post_processor = end
    return found


def tiny_t5(words: int, *, gated: bool = False) -> T5ForConditionalGeneration:
    """Classic (one embedding matrix, its logits scaled), or as in version 1.1 (gated, logits as they are)."""
    torch.manual_seed(0)
    sizes = {"d_model": WIDTH, "d_kv": 8, "d_ff": 48, "num_layers": LAYERS, "num_decoder_layers": LAYERS + 1}
    kind = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False} if gated else {}
    special = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2, "dropout_rate": 0.0}
    return T5ForConditionalGeneration(T5Config(vocab_size=words, num_heads=4, **sizes, **special, **kind))


def taught(
    tokenizer: PreTrainedTokenizerFast, pairs: Sequence[tuple[str, str]], *, gated: bool = False, steps: int = 200
) -> tracer.LanguageModel:
    """A float64 T5 that has learnt to fill these prompts with these answers."""
    model = tiny_t5(len(tokenizer), gated=gated).train()
    filled = [f"<extra_id_0> {answer}" for _, answer in pairs]
    read = tokenizer([asked for asked, _ in pairs], padding=True, return_tensors="pt", padding_side="right")
    labels = tokenizer(filled, padding=True, return_tensors="pt", padding_side="right").input_ids
    labels[labels == 0] = -100
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(steps):
        loss = model(input_ids=read.input_ids, attention_mask=read.attention_mask, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if loss < 0.01:
            break
    assert loss < 0.05, "the facts were not learnt"
    return tracer.load(model.double(), tokenizer=tokenizer)


def knowing_t5(tokenizer: PreTrainedTokenizerFast, *, gated: bool = False) -> tracer.LanguageModel:
    """One that knows where cities lie."""
    pairs = [(way.format(city), country) for way in WAYS for city, country in LIES_IN.items()]
    return taught(tokenizer, pairs, gated=gated)
