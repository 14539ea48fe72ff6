"""The paper's job on one real GPU: speed, memory, exactness across cuts, and goodput under fire. See `__main__`."""
