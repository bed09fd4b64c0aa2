"""What SGLang's two plugin groups call."""


def register() -> None:
    pass


def platform() -> str | None:
    return None
