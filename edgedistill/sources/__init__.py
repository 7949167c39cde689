"""Source models, and their outputs on the target's images."""
