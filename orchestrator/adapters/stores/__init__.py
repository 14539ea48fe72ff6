"""Stores of checkpoints, datasets and adapters."""
