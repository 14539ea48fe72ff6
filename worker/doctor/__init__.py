"""A check of a machine of theirs before the first job: ten probes, each with one sentence, and one signed line that holds them all.

`outcome` is how a probe ends, `kernel` what a Kaggle kernel runs, `cell` what a Colab cell runs; the other modules are probes.
Only `tiny` and `reduce` import torch, each in a process of its own; everything else needs nothing but Python.
"""
