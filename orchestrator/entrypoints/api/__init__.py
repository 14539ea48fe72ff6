"""The REST API: routes for people and for workers, with their requests and responses."""
