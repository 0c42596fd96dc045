"""Operators of our own for ONNX Runtime, which count bits: a small library in C++, and what puts them into a file.

`build` compiles `source`, `library` finds the result, and `rewrite` replaces the binary layers of a file.
"""
