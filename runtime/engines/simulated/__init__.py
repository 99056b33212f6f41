"""Engines without models: a cost model, a world of texts, and a tokenizer."""
