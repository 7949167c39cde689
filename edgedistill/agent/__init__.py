"""What travels to a device: standard library, numpy and the runtime; nothing of edgedistill; Python 3.8 and later."""
