"""Networks with trained weights that package registries ship, on photographs."""
