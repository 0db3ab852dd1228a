"""What a trace measured: total and indirect effects of one fact, and their averages over many.

    TE = p_clean - p_corrupted        IE(site) = p_restored(site) - p_corrupted
ATE and AIE are their means over facts. All are differences of the metric, by default the answer's probability: then
in [-1, 1], positive where the subject, or the site, carries the answer (Meng et al. 2022, sec. 2.1).
"""

from tracer.effect.average_trace import AverageTrace
from tracer.effect.estimate import Estimate
from tracer.effect.settings import Settings, about_measured, fact_from, measured_from
from tracer.effect.trace_result import TraceResult

__all__ = ["AverageTrace", "Estimate", "Settings", "TraceResult", "about_measured", "fact_from", "measured_from"]
