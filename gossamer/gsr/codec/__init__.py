"""Entropy coders of the compact file: integers to bytes and back, exactly, safe against hostile payloads."""

from gossamer.gsr.codec.integers import LARGEST, Integers, IntegersHeader
from gossamer.gsr.codec.length import code_length
from gossamer.gsr.codec.section import MODES, decode_section, encode_section

__all__ = ["LARGEST", "MODES", "Integers", "IntegersHeader", "code_length", "decode_section", "encode_section"]
