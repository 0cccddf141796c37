"""Ranked data sets: folder format, checks, splits, synthetic data."""
