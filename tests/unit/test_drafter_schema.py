"""What a push must hold: names, shapes, types and the map of the serving drafter."""

from __future__ import annotations

import math
import struct

import pytest
from drafter_toys import DRAFT_VOCAB, HIDDEN, SCHEMA, SLOTS, VOCAB, make_file

from sglang_respec.drafter.pace import Pace
from sglang_respec.drafter.reader import read_layout
from sglang_respec.drafter.schema import (
    Declared,
    DrafterSchema,
    Match,
    canonical,
    map_problems,
    match,
)
from sglang_respec.drafter.values import value_problems

OWN = [Declared(s.name, s.dtype, s.shape) for s in SLOTS if s.role != "shared"]


def problems(*changed: Declared, drop: str = "") -> dict[str, str]:
    kept = [
        each for each in OWN if each.name != drop and each.name not in {c.name for c in changed}
    ]
    found = match(SCHEMA, [*kept, *changed])
    assert isinstance(found, list)
    return {each.tensor: each.problem for each in found}


def test_a_fitting_push():
    fit = match(SCHEMA, OWN)
    assert isinstance(fit, Match)
    assert fit.take == tuple(each.name for each in OWN)
    assert (fit.ignored, fit.d2t, fit.t2d) == ((), "d2t", None)


@pytest.mark.parametrize(
    ("theirs", "sglangs"),
    [
        ("midlayer.self_attn.q_proj.weight", "layers.0.self_attn.q_proj.weight"),
        ("model.midlayer.mlp.up_proj.weight", "layers.0.mlp.up_proj.weight"),
        ("model.layers.0.hidden_norm.weight", "layers.0.hidden_norm.weight"),
        ("layers.0.hidden_norm.weight", "layers.0.hidden_norm.weight"),
        ("aux_norm_mid.weight", "fc_norm.1.weight"), ("fc.weight", "fc.weight"),
        ("model.embed_tokens.weight", "embed_tokens.weight"), ("d2t", "d2t"), ("model.d2t", "d2t"),
    ],
)  # fmt: skip
def test_names_in_use_elsewhere(theirs, sglangs):
    assert canonical(theirs) == sglangs


def test_the_targets_own_tensors_are_told_of_and_not_taken():
    fit = match(
        SCHEMA,
        [
            *OWN,
            Declared("model.embed_tokens.weight", "F16", (VOCAB, HIDDEN)),
            Declared("verifier_lm_head.weight", "F64", (3, 3)),
            Declared("t2d", "BOOL", (VOCAB,)),
        ],
    )
    assert isinstance(fit, Match)
    assert fit.ignored == ("model.embed_tokens.weight", "verifier_lm_head.weight")
    assert set(fit.take) == {each.name for each in OWN}
    assert fit.t2d == "t2d"


def test_everything_wrong_is_listed_at_once():
    found = match(
        SCHEMA, [Declared("norm.weight", "I64", (3,)), Declared("typo.weight", "F32", ())]
    )
    assert isinstance(found, list)
    listed = {(each.tensor, each.problem) for each in found}
    assert ("norm.weight", "has the wrong shape") in listed
    assert ("norm.weight", "has the wrong type") in listed
    assert ("typo.weight", "is no tensor of the serving drafter") in listed
    assert ("d2t", "is missing") in listed
    assert len([each for each in found if each.problem == "is missing"]) == len(OWN) - 1


@pytest.mark.parametrize("name", [each.name for each in OWN])
def test_a_missing_tensor(name):
    assert problems(drop=name) == {name: "is missing"}


@pytest.mark.parametrize("dtype", ["F64", "I32", "F8_E4M3", "BOOL"])
def test_a_weight_of_another_type(dtype):
    wrong = Declared("norm.weight", dtype, (HIDDEN,))
    assert problems(wrong) == {"norm.weight": "has the wrong type"}


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_any_float_type_is_converted(dtype):
    pushed = [Declared(d.name, dtype if d.name != "d2t" else "I64", d.shape) for d in OWN]
    assert isinstance(match(SCHEMA, pushed), Match)


def test_the_same_tensor_under_two_names():
    twice = Declared("model.norm.weight", "F32", (HIDDEN,))
    found = match(SCHEMA, [*OWN, twice])
    assert [(e.tensor, e.problem) for e in found] == [
        ("model.norm.weight", "is the same tensor as 'norm.weight'")
    ]


def test_a_shared_tensor_of_another_model_is_refused():
    found = match(SCHEMA, [*OWN, Declared("embed_tokens.weight", "F32", (VOCAB + 1, HIDDEN))])
    assert [each.tensor for each in found] == ["embed_tokens.weight"]
    assert found[0].expected == str([VOCAB, HIDDEN])


@pytest.mark.parametrize(
    ("t2d", "problem"),
    [
        (Declared("t2d", "BOOL", (VOCAB - 1,)), "has the wrong shape"),
        (Declared("t2d", "I64", (VOCAB,)), "has the wrong type"),
    ],
)
def test_a_wrong_t2d(t2d, problem):
    assert problems(t2d) == {"t2d": problem}


def test_the_schema_survives_its_journey_between_processes():
    assert DrafterSchema.from_dict(SCHEMA.to_dict()) == SCHEMA


def test_the_largest_honest_push_is_within_the_limit():
    weights = sum(4 * math.prod(s.shape) for s in SLOTS if s.role != "map")
    assert SCHEMA.max_push_bytes >= weights + 8 * DRAFT_VOCAB + VOCAB + len(make_file())


@pytest.mark.parametrize(
    ("d2t", "t2d", "tensor"),
    [
        ([0, 1, 2, 3, 4, 4], None, None), ([0] * 6, [True] * 6 + [False] * 4, None),
        ([0, 0, 0, 0, 0, 5], None, "d2t"), ([-1, 0, 0, 0, 0, 0], None, "d2t"),
        ([0] * 6, [True] * 7 + [False] * 3, "t2d"), ([1 << 62] + [0] * 5, None, "d2t"),
    ],
)  # fmt: skip
def test_the_vocabulary_map(d2t, t2d, tensor):
    found = map_problems(SCHEMA, d2t, t2d)
    assert [each.tensor for each in found] == ([tensor] if tensor else [])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_values_that_are_not_finite_are_found_anywhere(tmp_path, value, dtype):
    for position in range(HIDDEN):
        numbers = [1.0] * HIDDEN
        numbers[position] = value
        blob = struct.pack(f"<{HIDDEN}{'e' if dtype == 'F16' else 'f'}", *numbers)
        if dtype == "BF16":  # the upper half of a float32
            blob = b"".join(blob[i + 2 : i + 4] for i in range(0, len(blob), 4))
        path = tmp_path / "push"
        path.write_bytes(make_file(**{"norm.weight": (dtype, (HIDDEN,), blob)}))
        layout = read_layout(path)
        fit = match(SCHEMA, [Declared(t.name, t.dtype, t.shape) for t in layout.values()])
        assert isinstance(fit, Match)
        found = value_problems(path, layout, fit, SCHEMA, Pace(1))
        assert [each.tensor for each in found] == ["norm.weight"]


def test_the_targets_own_tensors_may_hold_anything(tmp_path):
    """`speculators` leaves them not-a-number until they are loaded."""
    nan = struct.pack(f"<{VOCAB * HIDDEN}f", *[math.nan] * (VOCAB * HIDDEN))
    path = tmp_path / "push"
    path.write_bytes(make_file(**{"embed_tokens.weight": ("F32", (VOCAB, HIDDEN), nan)}))
    layout = read_layout(path)
    fit = match(SCHEMA, [Declared(t.name, t.dtype, t.shape) for t in layout.values()])
    assert isinstance(fit, Match)
    assert value_problems(path, layout, fit, SCHEMA, Pace(1)) == []
