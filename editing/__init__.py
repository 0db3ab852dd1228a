"""Change a fact in a language model: editors behind one contract, edits that can be undone."""

from editing.edit import Edit, load_edit, undo_all, unedited
from editing.errors import (
    BaseModelError,
    CovarianceError,
    EditFailedError,
    EditingError,
    EditingWarning,
    EditOrderError,
    RequestError,
)
from editing.locate_then_edit.rome import ROME
from editing.request import EditRequest

__all__ = [
    "ROME",
    "BaseModelError",
    "CovarianceError",
    "Edit",
    "EditFailedError",
    "EditOrderError",
    "EditRequest",
    "EditingError",
    "EditingWarning",
    "RequestError",
    "load_edit",
    "undo_all",
    "unedited",
]
