"""The libraries that load and train a model: transformers everywhere, unsloth on a GPU that it supports."""
