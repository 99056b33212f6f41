"""Handles text and ids: tokenizers, contexts, prompts, and the ends of steps."""
