"""One session from its start to its last message: reports, saves, uploads, deadlines."""
