"""The recipe: its schema, reading it from a file, and binding of names and options."""
