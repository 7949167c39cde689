"""A classifier that somebody else trained: read from ONNX, quantized, bundled and measured, without a recipe."""
