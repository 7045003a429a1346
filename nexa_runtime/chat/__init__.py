"""Chat: messages in one internal form, and how a model wants to read them."""
