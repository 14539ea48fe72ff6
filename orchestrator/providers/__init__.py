"""Drivers for kinds of machines. Each is one file that imports `orchestrator.ports` and nothing else of the server."""
