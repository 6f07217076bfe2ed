"""Registries whose parents are mmseg's, filled by name, and the one call that makes everything known."""

from __future__ import annotations

import functools

from sslseg import plugins
from sslseg.compat import quiet_import, resolve_bases

with quiet_import():
    import mmseg.registry as parent
    from mmengine.logging import MMLogger
    from mmengine.registry import DefaultScope, Registry

SCOPE = "sslseg"
LOCATIONS = {
    "MODELS": ["sslseg.methods", "sslseg.networks"],
    "TRANSFORMS": ["sslseg.data.color", "sslseg.data.intensity", "sslseg.data.randaugment", "sslseg.data.transforms"],
    "OPTIM_WRAPPER_CONSTRUCTORS": ["sslseg.engine.optimizers"],
    "TASK_UTILS": ["sslseg.networks"],
}

# One child for each of mmseg's registries: mmengine looks for everything it builds in the default scope first.
REGISTRIES = {
    name: Registry(registry.name, parent=registry, scope=SCOPE, locations=LOCATIONS.get(name, []))
    for name, registry in vars(parent).items()
    if isinstance(registry, Registry)
}
MODELS = REGISTRIES["MODELS"]
TRANSFORMS = REGISTRIES["TRANSFORMS"]
TASK_UTILS = REGISTRIES["TASK_UTILS"]


@functools.cache
def register_modules() -> None:
    """Register mmseg's modules and those of all plug-ins, and make ``sslseg`` the default scope; silent on stdout."""
    with quiet_import():
        from mmseg.utils import register_all_modules

        register_all_modules(init_default_scope=False)
    # mmengine logs to stdout, which belongs to the command's one line; training makes a logger of its own, into a file.
    MMLogger.get_instance(SCOPE).handlers.clear()
    if DefaultScope.get_current_instance() is None:
        DefaultScope.get_instance(SCOPE, scope_name=SCOPE)
    resolve_bases(plugins.find_config)
    plugins.load()
