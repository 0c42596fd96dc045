"""Methods that change the configuration of a network."""
