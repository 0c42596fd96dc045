"""Memory of the commands."""
