"""Scoring: models, alerts and explanations for batches of customers. Knows no protobuf and no gRPC."""
