"""bench: which devices there are, how to reach them, what to bring, and what they said."""
