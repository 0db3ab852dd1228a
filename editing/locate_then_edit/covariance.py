"""Step 3, the statistics of other keys: C = E[k k^T] over ordinary text, uncentred.

An edit that moves k* should leave other keys alone; C^-1 k* is the direction that does. C is always
that of the unedited model. It comes from any text file, or from text that the model writes itself,
so nothing need be downloaded. Keys are streamed: memory is one [d_mlp, d_mlp] matrix a layer.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from editing.early_end import hooked_until
from editing.edit import original_fingerprint, unedited
from editing.errors import CovarianceError
from editing.locate_then_edit.configuration import configuration
from editing.locate_then_edit.corpus import batches_of, identity_of, texts_of
from editing.scoring.generation import SAMPLE_LENGTH
from tracer.anatomy.hidden import by_token
from tracer.errors import FileFormatError, NumericsError
from tracer.model import LanguageModel
from tracer.precision import wide
from tracer.progress import bar
from tracer.storage import cache_folder, read_tensors, write_tensors

EPSILON = torch.finfo(torch.float64).eps
RIDGE = 1e-6


@dataclass(frozen=True, eq=False)
class SecondMoment:
    """C of one layer and how it was estimated.

    Attributes:
        matrix: C, float64, on the CPU.
        n_tokens: keys averaged.
        corpus: the file's name, or "written by the model".
        half_difference: relative difference of the estimates from both halves of the text,
            ||C_1 - C_2|| / ||C_1 + C_2||: about the relative error of C.
        cached: it was read from the cache, not measured now.
    """

    layer: int
    matrix: Float[Tensor, "d_mlp d_mlp"]
    n_tokens: int
    corpus: str
    half_difference: float
    ridge: float = RIDGE
    cached: bool = False

    @property
    def regularised(self) -> Float[Tensor, "d_mlp d_mlp"]:
        """C + ridge * (tr C / d_mlp) * I: a neuron that never fires has a zero row, and C no inverse."""
        size = len(self.matrix)
        return self.matrix + self.ridge * self.matrix.trace() / size * torch.eye(size, dtype=torch.float64)

    @cached_property
    def _factor(self) -> Float[Tensor, "d_mlp d_mlp"]:
        factor, failed = torch.linalg.cholesky_ex(self.regularised)
        if failed:
            raise CovarianceError(
                f"The key statistics of layer {self.layer} are not positive definite ({self.n_tokens} tokens for "
                f"{len(self.matrix)} neurons). Give more text or a larger ridge than {self.ridge}."
            )
        return factor

    def solve(self, keys: Float[Tensor, " d_mlp *key"]) -> Float[Tensor, " d_mlp *key"]:
        """C^-1 keys, of one or of several; float64 on the CPU."""
        keys = keys.detach().cpu().double()
        # `cholesky_solve` copies the factor at each call; in a long sequence the memory of such copies, where they are
        # smaller than 32 MB, is not found again between the edits that are kept.
        half = torch.linalg.solve_triangular(self._factor, keys.reshape(len(keys), -1), upper=False)
        return torch.linalg.solve_triangular(self._factor.mT, half, upper=True).reshape(keys.shape)

    @cached_property
    def spectrum(self) -> tuple[Float[Tensor, " eigenvalue"], Float[Tensor, "d_mlp eigenvalue"]]:
        """Eigenvalues of C without a ridge, rising, and eigenvectors."""
        values, vectors = torch.linalg.eigh(self.matrix)
        return values, vectors

    def report(self) -> dict[str, float | int | str | bool]:
        """How well C is known and conditioned; without its spectrum Cholesky's diagonal bounds the condition number."""
        if "spectrum" in vars(self):
            values = self.spectrum[0] + self.ridge * self.matrix.trace() / len(self.matrix)
            condition = float(values.max() / values.clamp(min=EPSILON * values.max()).min())
        else:
            diagonal = self._factor.diagonal()
            condition = float((diagonal.max() / diagonal.min()) ** 2)
        return {
            "layer": self.layer,
            "corpus": self.corpus,
            "tokens": self.n_tokens,
            "neurons": len(self.matrix),
            "dead_neurons": int((self.matrix.diagonal() == 0).sum()),
            "half_difference": self.half_difference,
            "condition_number_at_least": condition,
            "cached": self.cached,
        }


def second_moments(
    model: LanguageModel,
    layers: Sequence[int],
    *,
    corpus: str | Path | None = None,
    tokens: int | None = None,
    ridge: float = RIDGE,
    skip_first: bool = False,
    seed: int = 0,
    cache: bool = True,
    progress: bool | None = None,
) -> dict[int, SecondMoment]:
    """C of each layer in `layers`, from the cache or from one pass over the corpus.

    Args:
        model: its edits, if any, are taken out for the measurement.
        layers: which.
        corpus: a text file, also gzipped; None: text that the model writes itself.
        tokens: how many keys to average; default 100,000, or 10 * d_mlp of the model's own text.
        ridge: relative to the mean eigenvalue.
        skip_first: leave out each text's first token.
        seed: of the model's own text.
        cache: keep and use results, by weights and configuration, the corpus' sha256, tokens, seed and layer.
        progress: show bars.

    Raises:
        CovarianceError: the corpus is missing or empty, or has fewer tokens than 10 * d_mlp and than asked for.
        NumericsError: keys are NaN or infinite.
    """
    for layer in layers:
        model.anatomy.check_layer(layer)
    neurons = _neurons(model, layers[0])
    wanted = tokens or (10 * neurons if corpus is None else max(100_000, 10 * neurons))
    name, digest = identity_of(corpus, seed)
    of_all = (original_fingerprint(model), configuration(model), digest, wanted, SAMPLE_LENGTH, skip_first)
    paths = {layer: _cache_path(*of_all, layer) for layer in layers}
    found: dict[int, SecondMoment] = {}
    for layer, path in paths.items() if cache else ():
        with contextlib.suppress(FileFormatError):  # absent or damaged: measured again
            found[layer] = _remembered(model, path, layer, ridge)
    missing = [layer for layer in layers if layer not in found]
    if missing:
        with unedited(model):
            texts = texts_of(model, corpus, wanted, seed, cache, progress)
            for moment in _measure(model, missing, texts, wanted, name, ridge, skip_first, progress):
                found[moment.layer] = moment
                if cache:
                    _write(paths[moment.layer], moment)
    return found


def _measure(
    model: LanguageModel,
    layers: Sequence[int],
    texts: Iterator[str],
    wanted: int,
    corpus: str,
    ridge: float,
    skip_first: bool,
    progress: bool | None,
) -> Iterator[SecondMoment]:
    """One pass over the texts for all layers, stopped above the highest."""
    size = _neurons(model, layers[0])
    # Two halves of the texts, whose difference tells the error.
    halves = {layer: [torch.zeros(size, size, dtype=torch.float64) for _ in range(2)] for layer in layers}
    seen, read, least = [0, 0], 0, min(wanted, 10 * size)
    with bar(wanted, "key statistics", show=progress, unit="token") as steps:
        for ids, mask in batches_of(model, texts, wanted):
            real = mask.bool()
            real[:, 0] &= not skip_first
            hooks = [(model.anatomy.value_matrix(at), _accumulate(halves[at], real)) for at in sorted(layers)]
            with torch.inference_mode(), hooked_until(hooks):
                model.torch.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
            for half in (0, 1):
                seen[half] += int(real[half::2].sum())
            read += int(mask.sum())
            steps.update(int(mask.sum()))
    if read < least or not all(seen):
        raise CovarianceError(_too_little(corpus, read, wanted, least))
    for layer, (even, odd) in halves.items():
        total = (even + odd) / sum(seen)
        if not torch.isfinite(total).all():
            raise NumericsError(
                f"Keys of layer {layer} of {model.name} are NaN or infinite in {model.dtype}. Load it with "
                f'dtype="float32".'
            )
        difference = (even / seen[0] - odd / seen[1]).norm() / (2 * total.norm())
        yield SecondMoment(layer, total, sum(seen), corpus, float(difference), ridge)


def _too_little(corpus: str, read: int, wanted: int, least: int) -> str:
    """What is missing: tokens, or a second text, by which the first one's error is told."""
    if read < least:
        return f"{corpus} has {read} tokens; these neurons need at least {least}. Give more text, in lines of its own."
    return (
        f"{corpus} is one text as far as tokens={wanted} reach, and one tells no error. Write "
        f"tokens={2 * SAMPLE_LENGTH} or more, and give text in several lines."
    )


def _accumulate(
    halves: Sequence[Float[Tensor, "d_mlp d_mlp"]], real: Bool[Tensor, "text token"]
) -> Callable[..., None]:
    """Adds the keys of every second text to either half; `real` leaves padding out."""

    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        for half, total in enumerate(halves):
            keys = by_token(inputs[0], len(real))[half::2][real[half::2]]
            keys = wide(keys)
            total.add_((keys.T @ keys).cpu().double())

    return hook


def _cache_path(*key_parts: object) -> Path:
    key = hashlib.sha256("|".join(map(str, key_parts)).encode()).hexdigest()
    return cache_folder() / "covariance" / f"{key[:32]}.safetensors"


def _write(path: Path, moment: SecondMoment) -> None:
    about = {
        "kind": "second moment",
        "n_tokens": moment.n_tokens,
        "corpus": moment.corpus,
        "half_difference": moment.half_difference,
    }
    write_tensors(path, {"matrix": moment.matrix}, about)


def _remembered(model: LanguageModel, path: Path, layer: int, ridge: float) -> SecondMoment:
    """Read once for each model object: it holds its factors too."""
    key = ("second moment", path, ridge)
    if key not in model.remembered:
        model.remembered[key] = _read(path, layer, ridge)
    return model.remembered[key]


def _read(path: Path, layer: int, ridge: float) -> SecondMoment:
    tensors, about = read_tensors(path, "second moment")
    return SecondMoment(
        layer, tensors["matrix"], about["n_tokens"], about["corpus"], about["half_difference"], ridge, cached=True
    )


def _neurons(model: LanguageModel, layer: int) -> int:
    """d_mlp: the width of the keys."""
    return model.torch.get_parameter(model.anatomy.value_weight_name(layer)).numel() // model.d_model
