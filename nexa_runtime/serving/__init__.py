"""Serving: which models are loaded, and one request from its prompt to its end."""
