"""A model, opened: where it comes from, where it runs, and what it reads."""

from tracer.model.language_model import LanguageModel, load

__all__ = ["LanguageModel", "load"]
