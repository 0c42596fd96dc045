"""Orderings that papers report, measured here."""
