"""Text and ids: tokenizers, contexts, prompts, and where a step ends."""
