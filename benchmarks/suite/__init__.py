"""The evaluation suite: every method on every target and seed, with verdicts on the claims, tables and plots."""
