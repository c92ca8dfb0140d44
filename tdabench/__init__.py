"""tdabench: benchmark suite and leaderboard harness for training data attribution."""

from tdabench._version import __version__

__all__ = ["__version__"]
