"""The benchmarks behind the figures in docs/benchmarks.md. Each module prints JSON with `--json`."""
