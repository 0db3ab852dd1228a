"""One progress bar for all long work: on stderr, gone when done, silent when nobody watches."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

# The notebook's own bar needs ipywidgets and complains at import without it.
if find_spec("ipywidgets"):
    from tqdm.auto import tqdm
else:
    from tqdm import tqdm

Count = Callable[[int], object]  # told how many steps more are done, as a bar's `update` is


def uncounted(_n: int) -> None:
    """Where nobody counts."""


def bar(total: int, label: str, *, show: bool | None = None, unit: str = "it", initial: int = 0) -> Any:
    """A bar of `total` steps.

    Args:
        total: number of steps.
        label: what is being done.
        show: True or False; None shows it in a terminal or a notebook only, and of torchrun's processes in the first.
        unit: what a step is.
        initial: steps done before, which say nothing about the time left.
    """
    watched = os.environ.get("RANK", "0") == "0" and (sys.stderr.isatty() or "ipykernel" in sys.modules)
    visible = watched if show is None else show
    look: dict[str, Any] = {"leave": False, "disable": not visible, "dynamic_ncols": True}
    return tqdm(total=total, desc=label, unit=unit, initial=initial, **look)
