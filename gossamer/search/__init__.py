"""The search for what reaches a goal: shapes by their measured cost, and a tournament between them."""
