"""Methods that find a layer and change its weights in closed form, and the three steps they share."""

from editing.locate_then_edit.rome import ROME

__all__ = ["ROME"]
