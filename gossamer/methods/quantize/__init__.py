"""Hold weights to few equally spaced values."""
