"""Does the layer that tracing points to edit best? An edit swept over layers, beside their effects."""
