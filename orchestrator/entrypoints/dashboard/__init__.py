"""The dashboard: pages rendered by the server and updated by htmx and an event stream. They work without JavaScript."""
