"""One recorded pass of a model at a time: its hooks sit on modules that every thread shares."""

from __future__ import annotations

import threading
from weakref import WeakKeyDictionary

from torch import nn

_locks: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_making = threading.Lock()


def lock_of(module: nn.Module) -> threading.RLock:
    """The lock to hold while hooks of a whole pass are on this model."""
    with _making:
        return _locks.setdefault(module, threading.RLock())
