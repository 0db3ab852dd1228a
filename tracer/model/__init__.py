"""A model, opened: where it comes from, where it runs, and what it reads."""

from tracer.model.language_model import LanguageModel
from tracer.model.loading import load

__all__ = ["LanguageModel", "load"]
