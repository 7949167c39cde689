"""A student that may say "unknown": other packs as unknowns, accuracy at 90 % coverage, what a threshold holds."""
