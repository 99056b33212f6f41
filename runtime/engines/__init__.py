"""The engines: things that turn token ids into token ids."""
