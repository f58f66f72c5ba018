__version__ = "0.1.0"

import os
import signal
import sys


def _stop(number, frame):
    "Ctrl-C while the command line is imported, which takes a while: nothing has begun that could be left half done."
    os.write(2, b'bidirseg: stopped; the same line goes on from here\n')
    os._exit(130)


# Not where this is imported by another program, nor where Ctrl-C is ignored. `bidirseg.cli` then answers itself.
_program = os.path.basename(getattr(sys.modules['__main__'], '__file__', None) or '')
if _program == 'bidirseg' and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _stop)

import lazy_loader

# Threads that wait for each other spin, by default, and beside other programs a step then takes ten times as long.
# OpenMP reads this once, when torch is imported, and every process that is started from here inherits it.
for _name, _value in dict(OMP_WAIT_POLICY='passive', GOMP_SPINCOUNT='0', KMP_BLOCKTIME='0').items():
    os.environ.setdefault(_name, _value)

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)   # the names of __init__.pyi
