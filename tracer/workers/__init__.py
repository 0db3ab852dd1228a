"""Work in units, done by this process, by local processes or by a Ray cluster's; each holds a model of its own."""

from tracer.workers.attempts import Attempts
from tracer.workers.job import Job
from tracer.workers.recipe import Recipe
from tracer.workers.team import Backend, Team, team_of
from tracer.workers.threads import threads_each, torch_threads

__all__ = ["Attempts", "Backend", "Job", "Recipe", "Team", "team_of", "threads_each", "torch_threads"]
