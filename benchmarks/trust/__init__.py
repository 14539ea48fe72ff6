"""Whether data checks, audits and evaluations find what is there, and nothing else."""
