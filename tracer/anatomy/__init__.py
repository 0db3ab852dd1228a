"""A model's parts: which of its modules play which role, by name or by what they do."""

from tracer.anatomy.roles import Anatomy, SubLayer, anatomy_of, is_stored_transposed

__all__ = ["Anatomy", "SubLayer", "anatomy_of", "is_stored_transposed"]
