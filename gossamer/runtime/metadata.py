"""Keys of the metadata in `.onnx` and `.pt2` files. A part of the format: never to be changed."""

STRUCTURE = "gossamer.outputs"  # where the outputs stand in what the network gives
PREPROCESSING = "gossamer.preprocessing"  # how images become inputs, and the names of the classes
