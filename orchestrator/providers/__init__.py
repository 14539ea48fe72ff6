"""Drivers of providers. Of the server, a driver imports only the ports."""
