"""How the families of models write tool calls and reasoning."""
