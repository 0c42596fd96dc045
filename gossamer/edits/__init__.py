"""The edits that need nothing but the network: another module in a place, other values for a weight.

The other three have folders of their own: `gossamer.graph` (resize), `gossamer.constraints` (constrain) and
`gossamer.train` (train).
"""

from gossamer.edits.swap import swap

__all__ = ["swap"]
