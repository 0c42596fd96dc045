"""Low-rank layers, alone and with shared values."""
