"""Exports an adapter to where it is used: a merged model, a GGUF model, a GGUF adapter. Each is checked first."""
