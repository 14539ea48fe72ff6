"""The paper's job on one real GPU: speed, memory, exactness after cuts, and goodput with kills. See `__main__`."""
