"""int8 graphs compared with those of the peers: the same fp32 graphs, images and machine."""
