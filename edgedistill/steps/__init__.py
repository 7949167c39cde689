"""The steps of the pipeline, one per file, and the code they share."""
