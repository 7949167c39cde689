"""The run directory: its files, how they are read and written, and what it ran on."""
