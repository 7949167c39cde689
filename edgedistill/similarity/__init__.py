"""Scores of sources on the target's labels, and the weights made of them."""
