"""What the figures in docs/benchmarks.md come from. Each module prints JSON with `--json`."""
