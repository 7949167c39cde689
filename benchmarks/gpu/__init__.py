"""Everything that needs a GPU to be measured, by one command, piece by piece."""
