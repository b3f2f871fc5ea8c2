"""Batching: queues with admission control that collect calls into batches."""
