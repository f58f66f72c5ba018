# The public names, said once: `__init__.py` loads them from here when they are asked for, and type checkers read it.
from .models.inference import predict as predict
from .pipeline.predict import load as load
from .pipeline.stages import run as run

__version__: str
