"""Gradient steps on one MLP: FT, FT-L, FT-M."""
