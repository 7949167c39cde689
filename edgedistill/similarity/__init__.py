"""Similarity scores of the sources on the target's labels, and the source weights."""
