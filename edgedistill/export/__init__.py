"""export: ONNX graphs, int8 graphs, and the checks that compare them with the student they came from."""
