"""The report of a run: facts, words, drawings, pages."""
