"""Benchmarks of the ways to train that a job file can ask for. Each module yields `figures`."""
