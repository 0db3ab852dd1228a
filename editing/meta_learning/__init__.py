"""Editors that learn to edit: a small network turns one gradient of the model into a change of its weights."""
