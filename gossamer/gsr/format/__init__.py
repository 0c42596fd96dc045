"""The layout of a `.gsr` file: sections, header, names, codings of tensors, the graph, and the limits of each."""
