"""Mounts the HTTP routes of `respec_server` on SGLang's FastAPI app.

The server package depends on this one and not the other way round, so it is named here and found
when a server starts, as SGLang finds our platform.
"""

from __future__ import annotations

import pkgutil
import sys
from typing import Any

from sglang.srt.utils.auth import AuthLevel, auth_level

from sglang_respec.config import load_config
from sglang_respec.upstream.drafter_engine import DrafterEngine

ROUTERS = "respec_server.routes:make_router"
HTTP_SERVER = "sglang.srt.entrypoints.http_server"


def attach_to_tokenizer(_: None, manager: Any) -> None:
    """Runs after SGLang has made its communicators, in the process that serves HTTP.

    An engine without HTTP has not imported SGLang's server; there the engine object alone is made.
    """
    manager.respec_drafter = DrafterEngine(manager)
    if HTTP_SERVER in sys.modules:
        mount(sys.modules[HTTP_SERVER].app, manager)


def mount(app: Any, manager: Any) -> None:
    router = pkgutil.resolve_name(ROUTERS)(
        manager.respec_drafter,
        load_config(),
        admin_api_key=manager.config_value("admin_api_key"),
    )
    # With an API key set, SGLang's own check in front of ours lets only that key pass unless a
    # route says that it is an administrator's.
    for route in router.routes:
        if "POST" in route.methods:
            auth_level(AuthLevel.ADMIN_OPTIONAL)(route.endpoint)
    app.include_router(router)
    # Imported here, where SGLang's HTTP server is: an engine without one must not import it.
    from sglang_respec.upstream.health import mount_health

    mount_health(app, manager)
