"""Detectors on composed scenes: trained alike, and compressed."""
