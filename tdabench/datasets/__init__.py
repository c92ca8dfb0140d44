"""Data sets: from a folder that the user names, else downloaded once into the cache.

``--data DIR`` or ``TDABENCH_DATA`` names a folder that already holds the files; it is only read. Without it, each set
is downloaded from its publisher into ``<cache>/data``, under a lock, and checked against its SHA-256.
"""

from tdabench.datasets.cifar10 import Cifar10, cats_and_dogs, cifar10, cifar10n
from tdabench.datasets.folders import CACHE_VARIABLE, DATA_VARIABLE, cache_folder, data_folder, download_folder
from tdabench.datasets.maestro import maestro, maestro_metadata
from tdabench.datasets.mnist import mnist
from tdabench.datasets.shakespeare import shakespeare
from tdabench.datasets.torchvision_import import import_torchvision

__all__ = [
    "CACHE_VARIABLE",
    "DATA_VARIABLE",
    "Cifar10",
    "cache_folder",
    "cats_and_dogs",
    "cifar10",
    "cifar10n",
    "data_folder",
    "download_folder",
    "import_torchvision",
    "maestro",
    "maestro_metadata",
    "mnist",
    "shakespeare",
]
