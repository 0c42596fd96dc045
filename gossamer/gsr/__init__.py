"""The file format `.gsr` and its entropy coders. Nothing here knows more of gossamer than its errors.

`format` reads and writes the file: header, names, tensors, graph. `codec` turns integers into bytes and back. Networks
are saved into such files and loaded from them by `gossamer.compact`. `docs/format.md` and `docs/coder.md` specify both.
"""
