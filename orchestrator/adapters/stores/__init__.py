"""Where checkpoints, datasets and adapters lie."""
