"""SpecLRM: step-level speculative reasoning with a draft and a target model, on one event loop."""
