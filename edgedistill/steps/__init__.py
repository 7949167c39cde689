"""The steps of the pipeline, a file each, and what they share."""
