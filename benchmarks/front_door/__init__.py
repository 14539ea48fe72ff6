"""Benchmarks of what a person meets first. Each item is a module with a function of its name."""
