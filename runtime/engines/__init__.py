"""Turns token ids into token ids: vLLM, simulated and scripted engines."""
