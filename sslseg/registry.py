"""Registries whose parents are mmseg's, and a quiet import of mmseg itself."""

from __future__ import annotations

import contextlib
import functools
import io
import warnings

with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
    # The continuation prints "Could not import OneDL" on stdout, which belongs to the command's one line,
    # and warns of optional operators that no segmentor here uses.
    warnings.simplefilter("ignore")
    import mmseg.registry as parent
    from mmengine.config import utils as mmengine_config_utils
    from mmengine.logging import MMLogger
    from mmengine.registry import DefaultScope, Registry

SCOPE = "sslseg"
MMSEG_DISTRIBUTION = "onedl-mmsegmentation"


# One child for each of mmseg's registries: mmengine looks for everything it builds in the default scope first.
REGISTRIES = {
    name: Registry(registry.name, parent=registry, scope=SCOPE)
    for name, registry in vars(parent).items()
    if isinstance(registry, Registry)
}
METHODS = REGISTRIES["MODELS"]
TRANSFORMS = REGISTRIES["TRANSFORMS"]


@functools.cache
def import_mmseg() -> None:
    """Import mmseg silently, register its modules and ours, and make ``sslseg`` the default scope."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mmseg.utils import register_all_modules

        register_all_modules(init_default_scope=False)
        # `_base_ = 'mmseg::...'` looks for the distribution that upstream published under another name.
        mmengine_config_utils.MODULE2PACKAGE["mmseg"] = MMSEG_DISTRIBUTION
        import sslseg.data.strong
        import sslseg.data.transforms
        import sslseg.methods
        import sslseg.networks  # noqa: F401
    # mmengine logs to stdout, which belongs to the command's one line; training makes a logger of its own, into a file.
    MMLogger.get_instance(SCOPE).handlers.clear()
    if DefaultScope.get_current_instance() is None:
        DefaultScope.get_instance(SCOPE, scope_name=SCOPE)
