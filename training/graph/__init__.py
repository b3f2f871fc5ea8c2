"""The served computation as ONNX nodes, each with its NumPy twin."""
