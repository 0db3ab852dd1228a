"""Estimates from gradients, checked exactly where they are largest: maps of sites, and paths between heads and MLPs."""
