"""Methods that cut weights, channels and heads."""
