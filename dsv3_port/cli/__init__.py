"""The command line, `dsv3-port`: words in, sentences out."""

from .main import main

__all__ = ["main"]
