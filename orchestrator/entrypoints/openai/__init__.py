"""OpenAI's API for files and fine-tuning, over the same use cases as the REST API."""
