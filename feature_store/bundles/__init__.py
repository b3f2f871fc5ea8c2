"""Model bundles: the ONNX graph with its manifest, and the registry folder that holds them."""
