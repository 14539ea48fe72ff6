"""What the README's figures come from. Each module prints JSON with `--json`."""
