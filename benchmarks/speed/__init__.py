"""Latency: whole networks against other tools, sparse and shared layers, cheaper modules."""
