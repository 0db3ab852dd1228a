"""The most memory held: tensors on a GPU, else this process in main memory; of a block, or so far."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from pathlib import Path
from types import TracebackType

import torch

CLEAR = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")
FORGET_PEAK = "5"  # what Linux reads as: set the high-water mark back to what is resident now


def peak_bytes(device: torch.device) -> int:
    """The most memory held so far; 0 where nobody counts."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident("VmHWM")


class PeakMemory:
    """Measures a block.

    Attributes:
        bytes: at most in use during the block, less what was in use when it began.
        absolute: at most in use during the block.
        kind: "cuda" or "resident set".
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.kind = "cuda" if device.type == "cuda" else "resident set"
        self.bytes = self.absolute = 0

    def __enter__(self) -> PeakMemory:
        if self.kind == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        else:
            _return_free_memory()
            _forget_peak()
            self._before = _resident("VmRSS")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        most = peak_bytes(self.device)
        self.bytes, self.absolute = max(0, most - self._before), most


def _return_free_memory() -> None:
    """What the allocator keeps of earlier work would hide how much of it the block takes again."""
    with contextlib.suppress(OSError, AttributeError, TypeError):  # no glibc
        ctypes.CDLL(None).malloc_trim(0)


def _forget_peak() -> None:
    """Where the system does not allow it the mark stays, and only what exceeds every earlier peak is seen."""
    with contextlib.suppress(OSError):
        CLEAR.write_text(FORGET_PEAK)


def _resident(name: str) -> int:
    """VmRSS (now) or VmHWM (the high-water mark) in bytes; elsewhere than on Linux the mark for both, on Windows 0."""
    if STATUS.is_file():
        (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
        return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return 0
    import resource  # which Windows lacks

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
