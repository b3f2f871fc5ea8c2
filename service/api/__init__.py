"""The contract: translates between protobuf messages and the core, one module per service."""
