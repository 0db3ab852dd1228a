"""What is asked of an edited model: published benchmarks, or the bundled facts, as cases. See `editing.evaluation`."""
