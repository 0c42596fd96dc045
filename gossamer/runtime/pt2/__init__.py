"""`.pt2` files: written by torch's exporter, read by gossamer itself without unpickling or evaluating anything."""

from gossamer.runtime.pt2.file import export_pt2, load_pt2

__all__ = ["export_pt2", "load_pt2"]
