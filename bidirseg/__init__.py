__version__ = "0.1.0"

import os

import lazy_loader

# Threads that wait for each other spin, by default, and beside other programs a step then takes ten times as long.
# OpenMP reads this once, when torch is imported, and every process that is started from here inherits it.
for _name, _value in dict(OMP_WAIT_POLICY='passive', GOMP_SPINCOUNT='0', KMP_BLOCKTIME='0').items():
    os.environ.setdefault(_name, _value)

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)   # the names of __init__.pyi
