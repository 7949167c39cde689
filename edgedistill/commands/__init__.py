"""The commands of the command line beside those that run the pipeline, and the options that they share."""
