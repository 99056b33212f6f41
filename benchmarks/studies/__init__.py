"""Studies behind figures in docs/: run by hand as `python benchmarks/studies/NAME.py`, some on real models."""
