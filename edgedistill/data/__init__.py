"""The target's images: listed, decoded once, divided."""
