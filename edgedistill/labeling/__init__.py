"""`edgedistill suggest`: which pictures to label next."""
