"""All images of a data set: what an audit and a suggestion look at, with the features that are cached for them."""
