"""The agent of a machine that has joined a server: it calls for orders and starts sessions."""
