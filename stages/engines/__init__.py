"""Sampling and optimisation behind two small protocols."""
