"""Simulates engines without models: a cost model, texts, and a tokenizer."""
