"""`trainhop mcp`: tools for agents over the Model Context Protocol, as a client of the REST API."""
