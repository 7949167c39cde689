"""int8 beside the peers: the same fp32 graphs, images and machine."""
