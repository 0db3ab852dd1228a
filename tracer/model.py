"""Open a model: embedded default, hub name, local folder, GGUF file or an already loaded object."""

from __future__ import annotations

import copy
import hashlib
import warnings
from pathlib import Path
from typing import Any, Literal

import torch
from nnsight import NNsight, TransformersModel
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tracer.anatomy import Anatomy, Names, anatomy_of
from tracer.embedded import DEFAULT, EMBEDDED, dequantise, embedded_folder
from tracer.errors import AnatomyError, FactError, ModelSourceError, NumericsError, SweepMismatchError, TracerWarning
from tracer.hidden import hidden_of
from tracer.storage import cache_folder

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class LanguageModel:
    """A causal language model with its tokenizer and its anatomy.

    Attributes:
        torch: the plain transformers model, in eval mode.
        tokenizer: its fast tokenizer, or None for a model traced by token ids alone.
        anatomy: its modules by role.
        name: what it was loaded from.
        sweep_fault: why the sweep must not be used on this model, if its self-test failed; traces use the definition.
        edits: what `editing` has written into the weights and not undone, oldest first.
        remembered: what was measured on this model and need not be measured again, by what it depends on.
    """

    def __init__(
        self,
        torch_model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        name: str,
        names: Names | None = None,
    ) -> None:
        self.torch = torch_model.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.anatomy: Anatomy = anatomy_of(torch_model, names)
        self.sweep_fault: str | None = None
        # Kept on the torch model, so that two wrappers of it know of each other's edits.
        self.edits: list[Any] = torch_model.__dict__.setdefault("_applied_edits", [])
        self.remembered: dict[Any, Any] = {}
        self._nnsight: Any = None
        self._digests: dict[str, tuple[tuple, str]] = {}

    @property
    def nnsight(self) -> Any:
        """The same model wrapped by nnsight, for `tracer.passes` and for your own interventions."""
        if self._nnsight is None:
            # nnsight fills in a padding token: in a copy, not in the user's tokenizer.
            own = copy.deepcopy(self.tokenizer)
            self._nnsight = NNsight(self.torch) if own is None else TransformersModel(self.torch, tokenizer=own)
        return self._nnsight

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return self.anatomy.n_layers

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.anatomy.d_model

    @property
    def device(self) -> torch.device:
        """Where token ids go: the device of the token embedding (the first one, if there are several)."""
        return next(self.anatomy.embedding.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the token embedding."""
        return next(self.anatomy.embedding.parameters()).dtype

    @property
    def is_offloaded(self) -> bool:
        """Whether some weights are kept elsewhere and brought in for each pass (by accelerate)."""
        return any(weight.is_meta for weight in self.torch.parameters())

    @property
    def context_length(self) -> int | None:
        """Longest prompt in tokens, if the configuration says."""
        return getattr(self.torch.config.get_text_config(), "max_position_embeddings", None)

    def fingerprint(self) -> str:
        """sha256 over every weight and its name: equal weights, equal fingerprint, on any device.

        Only weights that changed since the last call are read again.
        """
        whole = hashlib.sha256()
        for name, parameter in sorted(self._weights().items()):
            whole.update(f"{name}:{self._digest(name, parameter)}".encode())
        return whole.hexdigest()

    def _weights(self) -> dict[str, Tensor]:
        if self.is_offloaded:
            from accelerate.utils.modeling import get_state_dict_offloaded_model  # it offloaded them

            return get_state_dict_offloaded_model(self.torch)
        return self.torch.state_dict(keep_vars=True)

    def _digest(self, name: str, parameter: Tensor) -> str:
        # `.data` writes do not raise `_version`, so a checksum of all bits goes into the state too.
        version = 0 if parameter.is_inference() else parameter._version
        bits = parameter.detach().contiguous().view(_INTEGERS[parameter.element_size()])
        checksum = int(bits.sum(dtype=torch.int64))
        state = (parameter.data_ptr(), version, tuple(parameter.shape), parameter.dtype, checksum)
        known = self._digests.get(name)
        if known is None or known[0] != state:
            raw = parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            label = f"{tuple(parameter.shape)}{parameter.dtype}"
            known = (state, hashlib.sha256(label.encode() + raw.numpy().tobytes()).hexdigest())
            self._digests[name] = known
        return known[1]

    def check_length(self, n_tokens: int) -> None:
        """Raises FactError where a text of `n_tokens` is longer than the model's context."""
        if self.context_length is not None and n_tokens > self.context_length:
            raise FactError(f"The text has {n_tokens} tokens; {self.name} takes {self.context_length}. Shorten it.")

    def check_unembedding(self) -> None:
        """Raises AnatomyError where `anatomy.unembed` does not give the model's own logits (a scaled head, say)."""
        ids = torch.arange(1, 4, device=self.device)[None]
        last: list[Tensor] = []
        handle = self.anatomy.blocks[-1].register_forward_hook(lambda _m, _a, output: last.append(hidden_of(output)))
        try:
            with torch.inference_mode():
                logits = self.torch(input_ids=ids).logits
                found = self.anatomy.unembed(last[0])
        finally:
            handle.remove()
        if torch.isfinite(logits).all() and not torch.allclose(found, logits, rtol=0.02, atol=0.02):
            raise AnatomyError(
                f"{self.name}: final norm and head do not give the model's own logits. Its head does more than these "
                f"names say (a scale, a bias?), so this family is not supported yet."
            )

    def check_finite(self, logits: Tensor) -> None:
        """Raises NumericsError where logits hold NaN or infinity."""
        if not torch.isfinite(logits).all():
            raise NumericsError(
                f"The model's logits are NaN or infinite in {str(self.dtype).removeprefix('torch.')}. "
                f'Load it with dtype="bfloat16" or dtype="float32".'
            )

    def __repr__(self) -> str:
        return f"LanguageModel({self.name!r}, layers={self.n_layers}, d_model={self.d_model}, {self.dtype})"


def load(
    source: str | Path | PreTrainedModel = DEFAULT,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    names: Names | None = None,
    check: bool = True,
    **options: Any,
) -> LanguageModel:
    """Opens a language model for tracing and editing.

    Args:
        source: "gemma-3-270m" (the embedded default) or "smollm2"; a hub name; a local folder; a
            `.gguf` file; or a transformers model that is already loaded (it is put in eval mode).
        tokenizer: only for a loaded model, or to replace the one that comes with the weights.
        device: "cpu", "cuda", "cuda:1"; "auto" spreads the model over all devices. Default: the first GPU, else CPU.
        dtype: "float32" (the default), "bfloat16", "float64" or "float16" (which many models overflow).
        names: module paths, for a family that `tracer.anatomy` does not list and `tracer.structure` does not find.
        check: compare the sweep with the definition on a made-up prompt; where they disagree, or the sweep
            cannot run, say so and trace by the definition.
        **options: passed on to `AutoModelForCausalLM.from_pretrained`.

    Raises:
        ModelSourceError: nothing loadable there.
        AnatomyError: a model type whose parts are not known.
    """
    if isinstance(source, PreTrainedModel):
        if device is not None or dtype is not None or options:
            raise ModelSourceError(
                "A loaded model stays on its device and in its dtype: write load(model.to(...)) without those options."
            )
        name = source.config._name_or_path or type(source).__name__
        return _checked(LanguageModel(source, tokenizer, name=name, names=names), check)
    kind = _dtype("float32" if dtype is None else dtype)
    if kind is torch.float16:
        warnings.warn("float16 overflows in many models; bfloat16 does not.", TracerWarning, stacklevel=2)
    where = _device(device)
    if where == "auto":
        options["device_map"] = "auto"
    try:
        place = _folder(str(source))
        model = AutoModelForCausalLM.from_pretrained(place, dtype=kind, **options)
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(place)
    except ModelSourceError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelSourceError(
            f"Could not load {str(source)!r}: {(str(error).splitlines() or [type(error).__name__])[0]}\n"
            f"Write one of {', '.join(sorted(EMBEDDED))}, a hub name such as 'openai-community/gpt2-xl', "
            f"a folder with config.json, or a .gguf file."
        ) from error
    if isinstance(where, torch.device):
        model.to(where)  # pyright: ignore[reportArgumentType]
    model.requires_grad_(False)
    return _checked(LanguageModel(model, tokenizer, name=str(source), names=names), check)


def _checked(model: LanguageModel, check: bool) -> LanguageModel:
    model.check_unembedding()
    if check:
        from tracer.self_test import self_test  # which traces models

        try:
            self_test(model)
        except NumericsError:
            pass  # each trace checks its own logits and says what to do
        except MemoryError:
            raise
        except Exception as error:  # a block of a family that nobody tried may fail in any way
            known = isinstance(error, (SweepMismatchError, AnatomyError))
            model.sweep_fault = str(error) if known else f"The sweep cannot run {model.name}: {error!r}."
            warnings.warn(
                f"{model.sweep_fault} Traces of this model use the definition, which is slow. Please report it.",
                TracerWarning,
                stacklevel=3,
            )
    return model


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


def _folder(source: str) -> str:
    """What `from_pretrained` takes for this source; GGUF files are dequantised once into the cache."""
    if source in EMBEDDED:
        return str(embedded_folder(source))
    path = Path(source).expanduser()
    if path.suffix != ".gguf":
        return str(path) if path.is_dir() else source
    if not path.is_file():
        raise ModelSourceError(f"There is no file {path}.")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    folder = cache_folder() / "models" / f"gguf-{digest[:24]}"
    if not folder.is_dir():
        dequantise(path, folder)
    return str(folder)
