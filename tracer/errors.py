"""Every mistake a user can make has a name here; its message says what to write instead."""

from __future__ import annotations


class TracerError(ValueError):
    """Base of all errors raised for bad input to `tracer`."""


class FactError(TracerError):
    """A prompt, subject or answer that cannot be traced."""


class SiteError(TracerError):
    """A layer, token or kind that this model or prompt does not have, or an option of a trace that cannot be."""


class AnatomyError(TracerError):
    """A model whose parts were not found; the message lists the missing roles."""


class ModelSourceError(TracerError):
    """A model that could not be found, fetched or read."""


class NumericsError(TracerError):
    """NaN or infinite activations, where every number after them would be meaningless."""


class OutOfMemoryError(TracerError, MemoryError):
    """Memory ran out, and nothing was left to compute in smaller pieces."""


class SweepMismatchError(TracerError):
    """The fast sweep and the definition disagree on this model, so the sweep must not be used."""


class FileFormatError(TracerError):
    """A file that is truncated, corrupt or not of the expected kind."""


class StudyError(TracerError):
    """A study that cannot go on, or studies that cannot be put together."""


class WorkerError(TracerError):
    """Workers that there cannot be, or that cannot do their work."""


class MissingPackageError(TracerError):
    """An optional package that is not installed; the message names the extra that brings it."""


class TracerWarning(UserWarning):
    """Something the user did not ask for but should know, e.g. which of two subjects is traced."""
