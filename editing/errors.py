"""Every mistake a user can make when editing has a name here; its message says what to write instead."""

from __future__ import annotations


class EditingError(ValueError):
    """Base of all errors raised for bad input to `editing`."""


class RequestError(EditingError):
    """A request or a setting that cannot be used."""


class EditFailedError(EditingError):
    """An edit that could not be made; the model is as it was before."""


class BaseModelError(EditingError):
    """A model that is not the one wanted, or whose weights cannot be written."""


class EditOrderError(EditingError):
    """Edits of one weight undone in another order than last in, first out."""


class CovarianceError(EditingError):
    """Key statistics that cannot be estimated from what was given."""


class EvaluationError(EditingError):
    """An evaluation that cannot be run, or an editor that left something on the model."""


class EditingWarning(UserWarning):
    """Something about an edit that the user did not ask for but should know."""
