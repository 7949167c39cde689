"""The search among students under a budget."""
