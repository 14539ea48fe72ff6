"""Checks a provider's machine before its first job: ten probes with one sentence each, sent as one signed line.

`outcome` is the result of a probe. `kernel` runs in the kernels of a check, `cell` in a notebook's cell. The other
modules are probes. Only `tiny` and `reduce` import torch, each in its own process. All others are standard library
only.
"""
