"""export: ONNX, int8 graphs, and the proof that they answer like the student they came from."""
