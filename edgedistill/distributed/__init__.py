"""Training with several processes, and the device of each."""
