"""The evaluation suite: every method on every target and seed, measured, judged against the claims and printed."""
