"""train: data, sources, similarity, student, search, methods and the loop."""
