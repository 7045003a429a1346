"""Nexa Runtime: a multi-tenant server for local language models, llama.cpp inside its own process."""

from importlib.metadata import version

__version__ = version("nexa-runtime")
