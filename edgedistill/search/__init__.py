"""The search for a student under a budget."""
