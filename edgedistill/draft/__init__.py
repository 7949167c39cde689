"""The first recipe of somebody's pictures: what they are, which settings fit, and the text with every reason."""
