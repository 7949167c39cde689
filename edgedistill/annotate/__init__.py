"""`edgedistill annotate`: a page on this machine on which suggested pictures are labeled by keys."""
