"""The domain: jobs, leases and checkpoints with their state machines. Standard library only."""
