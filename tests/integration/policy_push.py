"""Pushes a policy as trainers do, through SGLang's tensor endpoint. Run as a program with the URL
of a server and its number of ranks; it prints the server's answers as JSON.

A process of its own, since it needs SGLang's serializer, and because the server maps the tensors'
memory from the process that made them.
"""

import json
import sys

import httpx
import torch


def main(url: str, ranks: int) -> None:
    import pybase64
    from sglang.srt.utils import MultiprocessingSerializer

    def post(path: str, body: dict[str, object]) -> dict[str, object]:
        answer = httpx.post(url + path, json=body, timeout=120, trust_env=False)
        return {"status": answer.status_code, **answer.json()}

    def push(tensors: object) -> dict[str, object]:
        # One for each rank: what one of them has opened is gone for the others.
        payloads = [MultiprocessingSerializer.serialize(tensors) for _ in range(ranks)]
        texts = [pybase64.b64encode(each).decode() for each in payloads]
        return post("/update_weights_from_tensor", {"serialized_named_tensors": texts})

    answers = {"begin": post("/begin_weight_update", {})}
    garbage = pybase64.b64encode(b"no payload at all").decode()
    answers["garbage"] = post(
        "/update_weights_from_tensor", {"serialized_named_tensors": [garbage] * ranks}
    )
    answers["one payload for two ranks"] = post(
        "/update_weights_from_tensor", {"serialized_named_tensors": [garbage]}
    )
    answers["wrong shape"] = push([("model.norm.weight", torch.ones(7))])
    answers["no tensors"] = push(7)
    # A name that target and drafter share.
    answers["good"] = push([("model.norm.weight", torch.full((192,), 0.75))])
    answers["end"] = post("/end_weight_update", {})
    sys.stdout.write(json.dumps(answers) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
