"""Drivers for kinds of machines. Each is one file that imports `orchestrator.ports.providers` and nothing else of the server."""
