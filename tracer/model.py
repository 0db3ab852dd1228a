"""Open a model: embedded default, hub name, local folder, GGUF file or an already loaded object."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import Any

import torch
from nnsight import NNsight, TransformersModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tracer.anatomy import Anatomy, Names, anatomy_of
from tracer.embedded import DEFAULT, EMBEDDED, dequantise, embedded_folder
from tracer.errors import ModelSourceError, NumericsError, TracerWarning
from tracer.storage import cache_folder


class LanguageModel:
    """A causal language model with its tokenizer and its anatomy.

    Attributes:
        torch: the plain transformers model, in eval mode.
        tokenizer: its fast tokenizer, or None for a model traced by token ids alone.
        anatomy: its modules by role.
        name: what it was loaded from.
        sweep_checked: the sweep's self-test has passed on this model.
        edits: what `editing` has written into the weights and not undone, oldest first.
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
        self.sweep_checked = False
        self.edits: list[Any] = []
        self._nnsight: Any = None
        self._digests: dict[str, tuple[tuple, str]] = {}

    @property
    def nnsight(self) -> Any:
        """The same model wrapped by nnsight, for `tracer.passes` and for your own interventions."""
        if self._nnsight is None:
            bare = self.tokenizer is None
            self._nnsight = NNsight(self.torch) if bare else TransformersModel(self.torch, tokenizer=self.tokenizer)
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
    def context_length(self) -> int | None:
        """Longest prompt in tokens, if the configuration says."""
        return getattr(self.torch.config.get_text_config(), "max_position_embeddings", None)

    def fingerprint(self) -> str:
        """sha256 over every weight and its name: equal weights, equal fingerprint, on any device.

        Only weights that changed since the last call are read again.
        """
        whole = hashlib.sha256()
        for name, parameter in sorted(self.torch.state_dict(keep_vars=True).items()):
            whole.update(f"{name}:{self._digest(name, parameter)}".encode())
        return whole.hexdigest()

    def _digest(self, name: str, parameter: Tensor) -> str:
        # `.data` writes do not raise `_version`, so a strided sample of the values goes into the state too.
        stride = max(1, parameter.numel() // 4096)
        sample = parameter.detach().reshape(-1)[::stride].double().sum().item()
        state = (parameter.data_ptr(), parameter._version, tuple(parameter.shape), parameter.dtype, sample)
        known = self._digests.get(name)
        if known is None or known[0] != state:
            raw = parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            label = f"{tuple(parameter.shape)}{parameter.dtype}"
            known = (state, hashlib.sha256(label.encode() + raw.numpy().tobytes()).hexdigest())
            self._digests[name] = known
        return known[1]

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
    dtype: str | torch.dtype = "float32",
    names: Names | None = None,
    **options: Any,
) -> LanguageModel:
    """Opens a language model for tracing and editing.

    Args:
        source: "gemma-3-270m" (the embedded default) or "smollm2"; a hub name; a local folder; a
            `.gguf` file; or a transformers model that is already loaded (it is put in eval mode).
        tokenizer: only for a loaded model, or to replace the one that comes with the weights.
        device: "cpu", "cuda", "cuda:1"; "auto" spreads the model over all devices. Default: the first GPU, else CPU.
        dtype: "float32", "bfloat16", "float64" or "float16" (which many models overflow).
        names: module paths, for a family that `tracer.anatomy` does not know.
        **options: passed on to `AutoModelForCausalLM.from_pretrained`.

    Raises:
        ModelSourceError: nothing loadable there.
        AnatomyError: a model type whose parts are not known.
    """
    if isinstance(source, PreTrainedModel):
        return LanguageModel(source, tokenizer, name=source.config._name_or_path or type(source).__name__, names=names)
    kind = _dtype(dtype)
    if kind is torch.float16:
        warnings.warn("float16 overflows in many models; bfloat16 does not.", TracerWarning, stacklevel=2)
    place = _folder(str(source))
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if where == "auto":
        options["device_map"] = "auto"
    try:
        model = AutoModelForCausalLM.from_pretrained(place, dtype=kind, **options)
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise ModelSourceError(
            f"Could not load {str(source)!r}: {str(error).splitlines()[0]}\n"
            f"Write one of {', '.join(sorted(EMBEDDED))}, a hub name such as 'openai-community/gpt2-xl', "
            f"a folder with config.json, or a .gguf file."
        ) from error
    if where != "auto":
        model.to(where)  # pyright: ignore[reportArgumentType]
    model.requires_grad_(False)
    return LanguageModel(model, tokenizer, name=str(source), names=names)


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ModelSourceError(f"{dtype!r} is no floating-point type. Write 'float32', 'bfloat16' or 'float64'.")
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
