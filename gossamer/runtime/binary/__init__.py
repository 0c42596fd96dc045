"""Networks with binary layers on bits: packed inputs and weights, XNOR and population count.

`kernels` holds what is compiled, `images` and `products` the packed data, `limits` turns batch norms and signs into
limits of integers, `plan` finds what of a graph runs on bits, and `runner` runs a `.gsr` file.
"""
