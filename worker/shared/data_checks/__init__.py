"""Data checks: faults of a dataset that a person should know before a model learns from it. Needs no torch.

One pass over the rows. Each family of checks is a module with one class; `runner` gives every row to all of them.
Memory grows with the number of rows (hashes and signatures), never with their text.
"""

VERSION = 1
"""Of the checks and their limits. Stored results of another version are not used."""
