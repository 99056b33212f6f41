"""Studies behind figures in docs/: run by hand as `python -m speclrm.benchmarks.studies.NAME`, some on real models."""
