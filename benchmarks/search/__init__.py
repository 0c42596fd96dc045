"""Searchers of architectures, compared exactly on a table of trained cells."""
