"""Bytes of whole files, and of the entropy coder alone."""
