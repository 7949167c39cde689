"""A training epoch from eight sources, in edgedistill and in torchdistill: which is faster, and by how much."""
