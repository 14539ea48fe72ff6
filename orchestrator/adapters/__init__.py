"""Adapters of the ports: database, vault, stores, notifier."""
