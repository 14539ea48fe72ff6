"""Jobs, leases, checkpoints and accounts in SQLite or PostgreSQL: tables, transactions, queries."""
