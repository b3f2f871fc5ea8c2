"""Models: learners, calibration, spend, segments, and their export to ONNX."""
