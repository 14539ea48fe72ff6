"""Entry points: HTTP API, dashboard, command line, scheduler, demo."""
