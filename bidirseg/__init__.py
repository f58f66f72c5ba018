__version__ = "0.1.0"

from bidirseg import _compat
