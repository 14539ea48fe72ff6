"""A server of Weights & Biases to test against: on a loopback port, called by the real library and its helper.

    with WandbEmulator() as wandb:
        wandb.faults = ["500", "cut"]     # of the next pieces of a run's stream
        ... wandb.url, wandb.runs["job-1"].history

What is there: GraphQL for creating and resuming a run, and the stream of its files, where a piece has the number of its
first line, as at wandb.ai. What is not there: accounts, artifacts, pages.
"""

from tests.emulators.wandb.server import Run, WandbEmulator

__all__ = ["Run", "WandbEmulator"]
