"""The engine: many sequences share one llama context, step by step, on one thread."""
