"""Interfaces between the services and the outside: providers, stores, the repository, notifications.

A driver imports nothing else of the server.
"""
