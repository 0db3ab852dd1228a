"""What a model's configuration says of its computation, beside its weights."""

from __future__ import annotations

from tracer.model import LanguageModel
from tracer.storage import to_json

NOT_COMPUTED = ("_name_or_path", "name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")


def configuration(model: LanguageModel) -> str:
    """As JSON, to tell models of equal weights apart: under another window they compute other keys and values."""
    found = model.torch.config.get_text_config().to_dict()
    return to_json({name: value for name, value in sorted(found.items()) if name not in NOT_COMPUTED})
