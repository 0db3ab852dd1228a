"""Open a model: embedded default, hub name, local folder, GGUF file or an already loaded object.

What is opened is looked at before it is used: its parts, its head, and whether sweep and definition agree.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tracer.anatomy.hidden import hidden_of
from tracer.anatomy.names import Names
from tracer.anatomy.parts import check_parts
from tracer.errors import AnatomyError, ModelSourceError, NumericsError, TracerError, TracerWarning
from tracer.model.embedded import DEFAULT_MODEL
from tracer.model.language_model import LanguageModel
from tracer.model.parallel import is_out_of_memory
from tracer.model.remote import remote_model
from tracer.model.source import from_pretrained, loaded_model


def load(
    source: str | Path | PreTrainedModel = DEFAULT_MODEL,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    names: Names | None = None,
    check: bool = True,
    tensor_parallel: bool = False,
    remote: bool | str = False,
    decoder_starts: str | None = None,
    **options: Any,
) -> LanguageModel:
    """Opens a language model for tracing and editing.

    Args:
        source: "gemma-3-270m" (the embedded default) or "smollm2"; a hub name; a local folder; a
            `.gguf` file; or a transformers model that is already loaded (it is put in eval mode).
        tokenizer: only for a loaded model, or to replace the one that comes with the weights.
        device: "cpu", "cuda", "cuda:1"; "auto" spreads the model over all devices. Default: the first GPU, else CPU.
        dtype: "float32" (the default), "bfloat16", "float64" or "float16" (which many models overflow).
        names: module paths, for a family that `tracer.anatomy` neither lists nor finds.
        check: whether names given are of the parts they say; compare the sweep with the definition on a
            made-up prompt, and where they disagree, or the sweep cannot run, say so and trace by the definition.
        tensor_parallel: cut the model over the processes that torchrun started, each with a GPU of its own if
            there are GPUs; all of them run the same script.
        remote: True for a model that NDIF runs, by its hub name, or the address of another such server; its weights
            stay there and the definition traces it. "local" rehearses that on this machine.
        decoder_starts: of an encoder-decoder (T5), what its decoder reads between its start token and the answer.
            "<extra_id_0>" for one trained to fill in spans alone: a prompt without it gets it at its end. Default:
            the sentinel that a prompt has, else nothing, as for models trained to answer questions.
        **options: passed on to `AutoModelForCausalLM.from_pretrained` (`AutoModelForSeq2SeqLM`).

    Raises:
        ModelSourceError: nothing loadable there.
        AnatomyError: a model type whose parts are not known, names of other parts, or a model that
            the definition cannot trace.
    """
    if tensor_parallel:
        options["tensor_parallel"] = True
    if remote and isinstance(source, str | Path):
        return remote_model(str(source), remote, tokenizer, names, here={"device": device, "dtype": dtype, **options})
    opened = loaded_model(source, tokenizer, device=device, dtype=dtype, options=options)
    if opened is None:
        opened = from_pretrained(str(source), tokenizer, device=device, dtype=dtype, options=options)
    model, own_tokenizer, name = opened
    found = LanguageModel(model, own_tokenizer, name=name, names=names, decoder_starts=decoder_starts or "")
    if decoder_starts is not None and not found.is_encoder_decoder:
        raise ModelSourceError(f"{name} has no decoder apart from what reads the prompt: leave out decoder_starts.")
    return _checked(found, check, names_given=names is not None)


def _checked(model: LanguageModel, check: bool, *, names_given: bool) -> LanguageModel:
    _check_unembedding(model)
    check_parts(model.torch, model.anatomy.names, given=names_given and check)
    if not check:
        return model
    from tracer.sweep.self_test import by_definition, self_test  # which traces models

    try:
        passes = by_definition(model)
    except NumericsError:
        return model  # each trace checks its own logits and says what to do
    try:
        self_test(model, passes)
    except Exception as error:  # a block of a family that nobody tried may fail in any way
        if is_out_of_memory(error):
            raise
        known = isinstance(error, TracerError)
        model.sweep_fault = str(error) if known else f"The sweep cannot run {model.name}: {error!r}."
        warnings.warn(
            f"{model.sweep_fault} Traces of this model use the definition, which is slow. Please report it.",
            TracerWarning,
            stacklevel=3,
        )
    return model


def _check_unembedding(model: LanguageModel) -> None:
    """Raises AnatomyError where the model does not run, or `anatomy.unembed` does not give its own logits."""
    logits, last = _logits_and_last_state(model)
    if last is None or not torch.isfinite(logits).all():
        return  # `check_parts` says which parts do not run, each trace which logits are not finite
    try:
        with torch.inference_mode():
            same = torch.allclose(model.anatomy.unembed(last), logits, rtol=0.02, atol=0.02)
    except (RuntimeError, TypeError, IndexError):  # modules that take something else
        same = False
    if not same:
        raise AnatomyError(
            f"{model.name}: after_blocks={model.anatomy.names.after_blocks!r} and the head do not give the model's "
            f"own logits from its last block's output. If these names are yours, write the final norm and all "
            f"else between; else its head does more (a scale, a bias?), and this family is not supported yet."
        )


def _logits_and_last_state(model: LanguageModel) -> tuple[Tensor, Tensor | None]:
    """Of three tokens: [1, token, vocab], and the last block's output if it runs, [1, token, d_model]."""
    ids = torch.arange(1, 4, device=model.device)[None]
    last: list[Tensor] = []
    handle = model.anatomy.blocks[-1].register_forward_hook(lambda _m, _a, output: last.append(hidden_of(output)))
    try:
        with torch.inference_mode():
            decoder = {"decoder_input_ids": ids} if model.is_encoder_decoder else {}
            return model.torch(input_ids=ids, **decoder).logits, last[0] if last else None
    except Exception as error:  # whatever a model does whose parts do not fit together
        if is_out_of_memory(error):
            raise
        said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise AnatomyError(
            f"{model.name} does not run on three tokens ({said}). Try model(input_ids=...) by itself: are all its "
            f"parts of one dtype and where their inputs are?"
        ) from error
    finally:
        handle.remove()
