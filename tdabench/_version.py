"""The version, in one place: packaging reads it and so does the code, without importing anything else."""

__version__ = "0.1.0"
