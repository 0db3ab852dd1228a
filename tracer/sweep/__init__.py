"""The numbers of `tracer.passes` for all sites at once, through the model's own blocks."""

from tracer.sweep.batch_sweep import BatchSweep
from tracer.sweep.one_prompt import Sweep

__all__ = ["BatchSweep", "Sweep"]
