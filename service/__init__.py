"""The scoring service: gRPC in front, states from Redis, one ONNX graph, and the client that calls it."""
