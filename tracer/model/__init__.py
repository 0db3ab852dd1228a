"""A model, opened: where it comes from, where it runs, and what it reads."""

from tracer.model.language_model import LanguageModel, check_opened
from tracer.model.loading import load

__all__ = ["LanguageModel", "check_opened", "load"]
