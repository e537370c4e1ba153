"""Tests, and the kernels of nbval, use the library and the folders of this checkout, as the book's scripts do."""

from pathlib import Path

from checkout import settle

settle(Path(__file__).resolve().parent)
