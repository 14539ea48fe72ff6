"""The pages: rendered by the server, kept current by htmx and one stream of events, readable without any script."""
