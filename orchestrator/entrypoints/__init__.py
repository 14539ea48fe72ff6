"""The ways in: HTTP for people and workers, the ticker for time, the command line."""
