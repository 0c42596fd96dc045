"""Measurements behind what README.md and the documents claim; README.md of this folder lists them."""
