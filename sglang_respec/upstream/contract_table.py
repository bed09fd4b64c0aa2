"""What an entry of the contract with SGLang says."""

from dataclasses import dataclass


@dataclass(frozen=True)
class UpstreamName:
    """module and qualname as in the installed source; params in order where it matters."""

    module: str
    qualname: str
    params: tuple[str, ...] | None
    why: str
