"""Logit processors that tests send along, in the text form in which SGLang takes them."""

import json

import dill
import torch


class BanLast:
    """Forbids the token that the request generated last."""

    def __call__(self, logits, params):  # type: ignore[no-untyped-def]
        for row, each in enumerate(params):
            generated = each["__req__"].output_ids
            if len(generated):
                logits[row, generated[-1]] = float("-inf")
        return logits


class BanSome:
    """Forbids tokens that the model likes: spaces, digits, an equals sign."""

    def __call__(self, logits: torch.Tensor, params: list[dict[str, object]]) -> torch.Tensor:
        logits[:, [15, 16, 20, 22, 32, 34]] = float("-inf")
        return logits


class GiveNan:
    """What an overflow in a model leaves: a row of NaN."""

    def __call__(self, logits: torch.Tensor, params: list[dict[str, object]]) -> torch.Tensor:
        return logits * float("nan")


BANNED = {15, 16, 20, 22, 32, 34}


def as_text(processor: type) -> str:
    """SGLang's serialised form. By value: the server cannot import this module."""
    processor.__module__ = "__main__"
    return json.dumps({"callable": dill.dumps(processor).hex()})


BAN_LAST = as_text(BanLast)
BAN_SOME = as_text(BanSome)
GIVE_NAN = as_text(GiveNan)
