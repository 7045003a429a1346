"""The wire formats of OpenAI and Anthropic: the only place where their names exist."""
