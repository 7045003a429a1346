"""One module per group of endpoints; each turns a request into a call of ``serving`` and back."""
