"""OpenAI's wire format: the only place where its names exist."""
