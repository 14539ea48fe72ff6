"""What a job, a lease and a checkpoint are, and what may happen to them. Standard library only."""
