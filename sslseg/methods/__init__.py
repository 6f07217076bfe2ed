"""The methods: each wraps any mmseg segmentor. Importing this package registers all of them.

A paper is a file or a folder beside this one; a folder's ``__init__`` names its method.
"""

import importlib
import pkgutil

from sslseg.compat import quiet_import

with quiet_import():
    for _module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{_module.name}")
