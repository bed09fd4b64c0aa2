"""Pushes a policy as trainers do, through SGLang's tensor or distributed endpoint. Run as a program
with the way, the URL of a server, its number of ranks and a free port; it prints what the server
answered, as JSON.

A process of its own, since it needs SGLang's serializer and process groups, and because the server
maps the tensors' memory from the process that made them.
"""

import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import torch

Answers = dict[str, dict[str, Any]]
SHARED = "model.norm.weight"  # a name that target and drafter share
WIDTH = 192


def asker(url: str) -> Callable[[str, dict[str, object]], dict[str, Any]]:
    def post(path: str, body: dict[str, object]) -> dict[str, Any]:
        answer = httpx.post(url + path, json=body, timeout=120, trust_env=False)
        return {"status": answer.status_code, **answer.json()}

    return post


def by_tensor(url: str, ranks: int, _: int) -> Answers:
    import pybase64
    from sglang.srt.utils import MultiprocessingSerializer

    post = asker(url)

    def push(tensors: object) -> dict[str, Any]:
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
    answers["wrong shape"] = push([(SHARED, torch.ones(7))])
    answers["no tensors"] = push(7)
    answers["good"] = push([(SHARED, torch.full((WIDTH,), 0.75))])
    answers["end"] = post("/end_weight_update", {})
    return answers


def by_group(url: str, ranks: int, port: int) -> Answers:
    from sglang.srt.utils.common import init_custom_process_group

    post = asker(url)
    place = {"master_address": "127.0.0.1", "master_port": port, "rank_offset": 1,
             "world_size": 1 + ranks, "group_name": "policy", "backend": "gloo"}  # fmt: skip
    with ThreadPoolExecutor(1) as pool:
        joined = pool.submit(post, "/init_weights_update_group", place)
        group = init_custom_process_group(
            backend="gloo", init_method=f"tcp://127.0.0.1:{port}", world_size=1 + ranks, rank=0,
            group_name="policy",
        )  # fmt: skip

        def push(tensor: torch.Tensor, **more: object) -> dict[str, Any]:
            body = {"names": [SHARED], "dtypes": ["float32"], "shapes": [list(tensor.shape)],
                    "group_name": "policy", **more}  # fmt: skip
            answer = pool.submit(post, "/update_weights_from_distributed", body)
            torch.distributed.broadcast(tensor, src=0, group=group)
            return answer.result()

        return {
            "init": joined.result(),
            "begin": post("/begin_weight_update", {}),
            "wrong shape": push(torch.ones(7)),
            "good": push(torch.full((WIDTH,), 0.5)),
            "to all": push(torch.full((WIDTH,), 0.75), selector="all"),
            "end": post("/end_weight_update", {}),
            "leave": post("/destroy_weights_update_group", {"group_name": "policy"}),
        }


WAYS = {"tensor": by_tensor, "group": by_group}

if __name__ == "__main__":
    way, url, ranks, port = sys.argv[1:]
    answers = WAYS[way](url, int(ranks), int(port))
    sys.stdout.write(json.dumps(answers) + "\n")
