"""Networks that are sparse by training, and channels chosen by reconstruction."""
