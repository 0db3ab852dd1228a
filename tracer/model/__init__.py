"""A model, opened: where it comes from, where it runs, and what it reads."""

from tracer.model.embedded import DEFAULT_MODEL
from tracer.model.language_model import LanguageModel, check_opened
from tracer.model.loading import load

__all__ = ["DEFAULT_MODEL", "LanguageModel", "check_opened", "load"]
