"""HTTP: OpenAI's wire format outside, generations inside."""
