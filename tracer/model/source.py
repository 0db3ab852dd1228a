"""From a source (embedded default, hub name, folder, GGUF file, loaded object) to a plain transformers model."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from nnsight.intervention.envoy import Envoy
from safetensors import SafetensorError
from torch import nn
from torch._dynamo.eval_frame import OptimizedModule
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from tracer.anatomy.names import FAMILIES
from tracer.errors import MissingPackageError, ModelSourceError, TracerWarning
from tracer.model.embedded import EMBEDDED, dequantise, embedded_folder
from tracer.storage import cache_folder, file_sha256

Opened = tuple[PreTrainedModel, PreTrainedTokenizerBase | None, str]


def loaded_model(
    source: object,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    options: dict[str, Any],
) -> Opened | None:
    """The transformers model in an object that is already loaded, its tokenizer and name; None for a name or path.

    Raises:
        ModelSourceError: the object holds no such model, or one that must be unwrapped first; or options
            that only loading can heed.
    """
    if isinstance(source, str | Path):
        return None
    if isinstance(source, Envoy):
        source, tokenizer = source._module, tokenizer or vars(source).get("tokenizer")
    if not isinstance(source, PreTrainedModel):
        raise ModelSourceError(f"{type(source).__name__} is no transformers model. {_inside(source)}")
    if any(isinstance(part, OptimizedModule) or part._compiled_call_impl for part in source.modules()):
        raise ModelSourceError(
            "Parts of this model are compiled, and compiled code passes hooks by. Load it anew, without compile()."
        )
    if device is not None or dtype is not None or options:
        raise ModelSourceError(
            "A loaded model stays on its device and in its dtype: write load(model.to(...)) without those options."
        )
    if getattr(source.config, "return_dict", None) is False:
        raise ModelSourceError("This model returns tuples. Write model.config.return_dict = True before load(model).")
    return source, tokenizer, source.config._name_or_path or type(source).__name__


def _inside(source: object) -> str:
    """What to give in place of something that is no transformers model."""
    if isinstance(source, OptimizedModule):
        return "It is compiled, and compiled code passes hooks by: write load(model._orig_mod)."
    if type(source).__module__.startswith("peft."):
        return (
            "Write load(model.merge_and_unload()) to trace and edit it with the adapter merged into its weights, or "
            "load(model.get_base_model()) to trace it with the adapter beside them."
        )
    if type(source).__name__ == "LanguageModel":
        return "It is opened already: use it as it is, or write load(model.torch)."
    if isinstance(source, nn.Module) and isinstance(getattr(source, "module", None), nn.Module):
        return "Write load(model.module)."
    return "Write load(AutoModelForCausalLM.from_pretrained(...)), or a hub name, a folder or a .gguf file."


def from_pretrained(
    source: str,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    options: dict[str, Any],
) -> Opened:
    """Loads what `source` names, without gradients; of it the slices of this process, if the options say so."""
    kind = _dtype("float32" if dtype is None else dtype)
    if kind is torch.float16:
        warnings.warn("float16 overflows in many models; bfloat16 does not.", TracerWarning, stacklevel=3)
    cut = bool(options.pop("tensor_parallel", False))
    if cut and device is not None:
        raise ModelSourceError("With tensor_parallel=True each process takes a device of its own: leave out device=.")
    where = None if cut else _device(device)
    if where == "auto":
        options = {**options, "device_map": "auto"}
    try:
        place = place_of(source)
        if cut:
            options = {**options, "distributed_config": _parallel_plan(place)}
        model = _auto_class(place, options).from_pretrained(place, dtype=kind, **{"return_dict": True, **options})
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(place)
    except ModelSourceError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelSourceError(
            f"Could not load {source!r}: {(str(error).splitlines() or [type(error).__name__])[0]}\n"
            f"Write one of {', '.join(sorted(EMBEDDED))}, a hub name such as 'openai-community/gpt2-xl', "
            f"a folder with config.json, or a .gguf file."
        ) from error
    if isinstance(where, torch.device):
        model.to(where)  # pyright: ignore[reportArgumentType]
    model.requires_grad_(False)
    return model, tokenizer, source


def _auto_class(place: str, options: dict[str, Any]) -> Any:
    """What opens this place: T5 and its like are no causal language models to transformers."""
    about, _ = PreTrainedConfig.get_config_dict(place, **options)
    names = FAMILIES.get(about.get("model_type", ""))
    return AutoModelForSeq2SeqLM if names is not None and names.encoder is not None else AutoModelForCausalLM


def _parallel_plan(place: str) -> Any:
    try:
        from tracer.model.tensor_parallel import parallel_plan  # which needs a recent transformers
    except ImportError as error:
        raise MissingPackageError("tensor_parallel=True needs transformers 5.21 or newer.") from error
    return parallel_plan(place)


def _device(device: str | torch.device | None) -> torch.device | Literal["auto"]:
    """The device to load on; raises ModelSourceError where this machine does not have it."""
    if device == "auto":
        return "auto"
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        said = str(error).splitlines()[0]
        raise ModelSourceError(f"There is no device {str(device)!r} here ({said}). Write 'cpu' or 'cuda:0'.") from error
    return found


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found not in (torch.float32, torch.bfloat16, torch.float64, torch.float16):
        raise ModelSourceError(f"{dtype!r} is no floating-point type. Write 'float32', 'bfloat16' or 'float64'.")
    assert isinstance(found, torch.dtype)
    return found


def place_of(source: str) -> str:
    """What `from_pretrained` takes for this source; GGUF files are dequantised once into the cache."""
    if source in EMBEDDED:
        return str(embedded_folder(source))
    path = Path(source).expanduser()
    if path.suffix != ".gguf":
        return str(path) if path.is_dir() else source
    if not path.is_file():
        raise ModelSourceError(f"There is no file {path}.")
    folder = cache_folder() / "models" / f"gguf-{file_sha256(path)[:24]}"
    if not folder.is_dir():
        dequantise(path, folder)
    return str(folder)
