"""Logit processors that tests send along. Run as a program it prints their texts as JSON, in the
form in which SGLang takes them: by value, since the server cannot import this module."""

import json
import sys

import torch

BANNED = {15, 16, 20, 22, 32, 34}  # spaces, digits, an equals sign: what the model likes


def main() -> None:
    from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor

    class BanLast(CustomLogitProcessor):
        """Forbids the token that the request generated last."""

        def __call__(self, logits: torch.Tensor, params: list[dict[str, object]]) -> torch.Tensor:
            for row, each in enumerate(params):
                generated = each["__req__"].output_ids  # type: ignore[attr-defined]
                if len(generated):
                    logits[row, generated[-1]] = float("-inf")
            return logits

    class BanSome(CustomLogitProcessor):
        def __call__(self, logits: torch.Tensor, params: list[dict[str, object]]) -> torch.Tensor:
            logits[:, [15, 16, 20, 22, 32, 34]] = float("-inf")
            return logits

    class GiveNan(CustomLogitProcessor):
        """What an overflow in a model leaves: a row of NaN."""

        def __call__(self, logits: torch.Tensor, params: list[dict[str, object]]) -> torch.Tensor:
            return logits * float("nan")

    texts = {each.__name__: each.to_str() for each in (BanLast, BanSome, GiveNan)}
    sys.stdout.write(json.dumps(texts) + "\n")


if __name__ == "__main__":
    main()
