"""The student space: families, costs, and models with their initial weights."""
