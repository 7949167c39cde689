"""The recipe: its schema, how a file becomes one, and what binds names and options."""
