"""The report of a run: what is read from the run directory, its text, its plots and the pages made from them."""
