"""The demo model: corpus, tokenizer, training, export and evaluation, all in this folder.

Owns the one model that ships inside the package (`nexa_runtime/data/nexa-demo.gguf`). It is never
imported by the runtime; developers run `scripts/demo_model/train` to make the file again and
`scripts/demo_model/evaluate` to measure it through a running server.
"""
