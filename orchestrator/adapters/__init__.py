"""Where things are kept: the database, the vault, the stores."""
