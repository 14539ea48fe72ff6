"""The command line `trainhop`, a client of the REST API."""
