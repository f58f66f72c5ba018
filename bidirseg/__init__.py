__version__ = "0.1.0"

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={'models': ['predict'], 'pipeline.predict': ['load'], 'pipeline.stages': ['run']})
