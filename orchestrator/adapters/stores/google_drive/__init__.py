"""A store in a folder of a person's Google Drive."""
