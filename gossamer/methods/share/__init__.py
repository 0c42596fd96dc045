"""Methods that let weights share values."""
