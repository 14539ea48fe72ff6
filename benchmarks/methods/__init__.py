"""Benchmarks of ways of training, and of what is trained. Each module has a function `figures`."""
