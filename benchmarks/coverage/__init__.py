"""Which networks of others can be read, cut with proof and written again."""
