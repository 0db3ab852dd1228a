"""From what a model says to numbers, and what each of these means. See `editing.evaluation`."""
