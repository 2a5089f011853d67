"""The one comparison: nothing, NaN, another name, another shape, another choice of experts are never right."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from clusir import plain_json
from clusir.errors import UsageError, ValidationError
from clusir.export.validate.compare import Gates, check, compare, measure, route_flips
from clusir.export.validate.files import ParityPlan
from clusir.export.validate.parity import ParityCase, ParityRow, check_rows, output_names, run_case
from clusir.export.validate.tolerances import TOLERANCES, Tolerance, tolerance
from clusir.spec import ModelSpec

FP32, INT8 = tolerance("fp32"), tolerance("int8")
NAN = float("nan")


def outputs(batch: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    probability = np.array([[0.6, 0.3, 0.1, 0.2, 0.8], [0.1, 0.2, 0.7, 0.9, 0.1]], np.float32)[:batch]
    gate = np.where(probability >= 0.6, probability, 0).astype(np.float32)
    return {
        "restored": rng.random((batch, 3, 4, 4), dtype=np.float32),
        "posterior": np.full((batch, 4), 0.5, np.float32),
        "gate": gate,
        "expert_probability": probability,
    }


GATES = Gates((3, 2), 1, outputs()["expert_probability"])


def test_equal_outputs_are_right_and_the_figures_say_so() -> None:
    found = compare(outputs(), outputs(), FP32, GATES)
    assert found.ok
    assert (found.max_abs, found.psnr_db, found.flips, found.decisions) == (0.0, math.inf, 0, 4)
    assert found.count == 2 * 48 + 2 * 4 + 2 * 5 + 2 * 5
    assert found.outputs == tuple(outputs())
    assert check(found, "it") is found


SPOILT: dict[str, tuple[str, Any, str]] = {
    "a value": ("restored", lambda x: x + 2e-4 * (np.arange(x.size).reshape(x.shape) == 5), r"restored: differs by"),
    "many small ones": ("restored", lambda x: x + 5e-5, "restored: agrees to 86.0 dB, at least 90 are needed"),
    "NaN at the end": ("restored", lambda x: np.where(np.arange(x.size).reshape(x.shape) == 95, NAN, x), "not finite"),
    "infinite": ("restored", lambda x: x * np.inf, "not finite in 96 of 96"),
    "posterior a tenth": ("posterior", lambda x: x * 0.1, "output posterior: differs by 0.45"),
    "posterior zero": ("posterior", lambda x: x * 0, "output posterior"),
    "posterior NaN": ("posterior", lambda x: x * NAN, "output posterior: its values are not finite"),
    "gate a hundredth": ("gate", lambda x: x * 0.01, "output gate: differs"),
    "gate NaN": ("gate", lambda x: x * NAN, "output gate: its values are not finite"),
    "gate zero": ("gate", lambda x: x * 0, "other experts are chosen in 4 of 4"),
    "one flip": ("gate", lambda x: np.array([[0.6, 0, 0, 0.8, 0], *x[1:]], np.float32), "other experts .* 1 of 4"),
    "probabilities": ("expert_probability", lambda x: x[:, ::-1], "output expert_probability"),
    "another shape": ("restored", lambda x: x[:, :, :-1], "its shape is 2x3x3x4, 2x3x4x4 is expected"),
    "the same values, flat": ("restored", lambda x: x.ravel(), "its shape is 96, 2x3x4x4 is expected"),
    "empty": ("posterior", lambda x: x[:0], "its shape is 0x4"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_what_is_spoilt_is_not_right(name: str) -> None:
    output, spoil, why = SPOILT[name]
    good = outputs()
    found = compare(good, good | {output: spoil(good[output])}, FP32, GATES)
    assert not found.ok
    with pytest.raises(ValidationError, match=rf"^it: .*{why}"):
        check(found, "it")


def test_every_output_has_to_be_there_and_no_other() -> None:
    good = outputs()
    for name in good:
        found = compare(good, {n: a for n, a in good.items() if n != name}, FP32, GATES)
        assert found.fault == f"output {name} is missing"
    assert compare(good, good | {"more": good["gate"]}, FP32, GATES).fault == "output more is not expected"


def test_a_comparison_of_nothing_is_never_right() -> None:
    found = compare({}, {}, FP32)
    assert (found.ok, found.fault, found.max_abs, found.psnr_db) == (False, "nothing was compared", math.inf, -math.inf)
    empty = {"restored": np.zeros((0, 3, 4, 4), np.float32)}
    assert "it is empty" in compare(empty, empty, FP32).fault


def test_a_bound_that_is_no_number_is_not_held() -> None:
    good = outputs()
    assert not compare(good, good, replace(FP32, max_abs=NAN), GATES).ok
    assert not compare(good, good, replace(FP32, psnr_db=NAN), GATES).ok


def test_a_reference_that_is_not_finite_is_a_fault() -> None:
    good = outputs()
    found = compare(good | {"restored": good["restored"] * NAN}, good, FP32, GATES)
    assert "the reference's values are not finite" in found.fault


def test_lower_precisions_have_their_own_bounds_for_the_routing() -> None:
    bound = Tolerance(None, 30.0, False, routing_db=20.0, flip_share=0.5)
    good = outputs()
    near = good | {"posterior": good["posterior"] + np.float32(0.05), "restored": good["restored"] + np.float32(0.01)}
    found = compare(good, near, bound, GATES)
    assert found.ok
    assert (found.routing_db, found.psnr_db) == (pytest.approx(26.0, abs=0.1), pytest.approx(40.0, abs=0.1))
    for name in ("posterior", "gate", "expert_probability"):
        assert f"output {name}" in compare(good, good | {name: good[name] * np.float32(0.1)}, bound, GATES).fault
    assert "restored: agrees to 20.0 dB" in compare(good, good | {"restored": good["restored"] + 0.1}, bound).fault
    flipped = good | {"gate": good["gate"][:, [1, 0, 2, 3, 4]]}
    found = compare(good, flipped, bound, GATES)
    assert (found.ok, found.flips, found.decisions) == (True, 1, 4)


def test_relative_bounds_follow_the_magnitude_of_an_output() -> None:
    want = {"restored": np.full((1, 4), 1000.0, np.float32)}
    got = {"restored": want["restored"] + np.float32(0.05)}
    assert compare(want, got, TOLERANCES["brought"]).max_abs == pytest.approx(5e-5, rel=0.01)
    assert compare(want, got, TOLERANCES["brought"]).ok
    assert not compare(want, got, FP32).ok
    near = {"restored": want["restored"].astype(np.float64) + 2e-4}
    assert "differs by 0.0002" in compare(want, near, FP32).fault
    assert not compare(want, {"restored": want["restored"] + 1}, TOLERANCES["brought"]).ok


def test_near_ties_excuse_a_choice_among_the_tied_and_nothing_else() -> None:
    probability = np.array([[0.40002, 0.4, 0.19998]], np.float32)
    gates = Gates((3,), 1, probability)
    reference = np.array([[0.40002, 0, 0]], np.float32)
    for gate, flips in (
        ([0, 0.4, 0], 0),  # the other of the two
        ([0, 0, 0.4], 1),  # one that is not tied
        ([0, 0, 0], 1),  # none
        ([0.4, 0.4, 0], 1),  # both
        ([0.2, 0.2, 0], 1),  # both, at half the weight
        ([0, 0.004, 0], 1),  # the other, at another weight
        ([0, NAN, 0], 1),
    ):
        assert route_flips(np.array([gate], np.float32), reference, gates).sum() == flips, gate
    assert route_flips(np.array([[0, 0.4, 0]], np.float32), reference, Gates((3,), 1)).sum() == 1
    apart = Gates((3,), 1, np.array([[0.41, 0.4, 0.19]], np.float32))  # 0.01 is no tie
    assert route_flips(np.array([[0, 0.4, 0]], np.float32), reference, apart).sum() == 1
    lying = compare({"gate": reference}, {"gate": reference}, FP32, Gates((2, 2), 1))
    assert "no levels" in lying.fault


def test_measure_tells_equal_masks_from_values_that_are_not_finite() -> None:
    mask = np.array([0.0, -np.inf, NAN, 1.0], np.float32)
    assert measure(mask, mask).relative == math.inf
    same = measure(mask, mask, not_finite=True)
    assert (same.relative, same.max_abs, same.fault) == (0.0, 0.0, "")
    assert measure(mask, np.array([0.0, np.inf, NAN, 1.0], np.float32), not_finite=True).relative == math.inf
    assert measure(mask, np.array([0.5, -np.inf, NAN, 1.0], np.float32), not_finite=True).max_abs == 0.5
    assert measure(np.array([3.0, 4.0]), np.array([3.0, 4.5])).relative == pytest.approx(0.1)


class Stub:
    """A runner that answers with what it is given."""

    name = "stub:cpu"

    def __init__(self, spec: ModelSpec, answer: dict[str, np.ndarray]) -> None:
        self.spec, self.answer = spec, answer

    def run(self, feeds: object) -> dict[str, np.ndarray]:
        return self.answer


SPEC = ModelSpec(clusters=(2, 2), experts=(3, 2))
CASE = ParityCase("noise", np.zeros((2, 3, 16, 16), np.float32))


def row(spec: ModelSpec, answer: dict[str, np.ndarray], bound: Tolerance = FP32) -> ParityRow:
    return run_case(Stub(spec, answer), {}, outputs() | {"statistics": np.ones((2, 3))}, CASE, bound, "x")  # type: ignore[arg-type]


def test_each_graph_has_to_give_all_outputs_of_its_form() -> None:
    good = outputs() | {"statistics": np.ones((2, 3))}
    for graph, names in (
        ("whole", ("restored", "posterior", "gate")),
        ("tile", ("restored",)),
        ("router", ("posterior", "expert_probability", "statistics")),
    ):
        spec = replace(SPEC, graph=graph, statistics=0 if graph == "whole" else 3)
        assert output_names(spec) == names
        answer = {name: good[name] for name in names}
        assert row(spec, answer).ok
        for name in names:
            spoilt = row(spec, answer | {name: answer[name] * np.float32(0.5)})
            assert not spoilt.ok, (graph, name)
            assert name in spoilt.fault or "chosen" in spoilt.fault
            assert not row(spec, {n: a for n, a in answer.items() if n != name}).ok, (graph, name)
    assert output_names(ModelSpec()) == ("restored",)


def test_rows_that_are_not_right_refuse_and_so_do_no_rows() -> None:
    answer = {name: outputs()[name] for name in ("restored", "posterior", "gate")}
    good = row(SPEC, answer)
    check_rows([good], ["x"])
    with pytest.raises(ValidationError, match="nothing was compared"):
        check_rows([])
    with pytest.raises(ValidationError, match="y: nothing was compared"):
        check_rows([good], ["x", "y"])
    bad = row(SPEC, answer | {"restored": answer["restored"] + np.float32(0.1)})
    with pytest.raises(ValidationError, match=r"x on stub:cpu disagrees .* 1 of 2 cases; worst: noise 16x16 batch 2"):
        check_rows([good, bad])


def test_flips_of_lower_precisions_have_a_ceiling() -> None:
    bound = replace(INT8, routing_db=-100.0, flip_share=0.25)
    answer = {name: outputs()[name] for name in ("restored", "posterior", "gate")}
    one = row(SPEC, answer | {"gate": answer["gate"][:, [1, 0, 2, 3, 4]]}, bound)
    assert (one.ok, one.flips, one.decisions) == (True, 1, 4)
    check_rows([one])
    two = row(SPEC, answer | {"gate": answer["gate"][:, [1, 2, 0, 3, 4]]}, bound)
    with pytest.raises(ValidationError, match=r"chooses other experts .* 2 of 4 cases; allowed is a share of 0.25"):
        check_rows([two])
    assert 0 <= INT8.flip_share < 1


def test_the_table_of_bounds() -> None:
    assert (FP32.max_abs, FP32.psnr_db, FP32.gates_equal, FP32.routing_db, FP32.flip_share) == (
        1e-4,
        90.0,
        True,
        None,
        0,
    )
    assert (tolerance("fp32", "cuda").max_abs, tolerance("fp32", "cuda").psnr_db) == (1e-3, 80.0)
    assert (tolerance("fp16").psnr_db, tolerance("fp16", "cuda").psnr_db, INT8.psnr_db) == (60.0, 55.0, 30.0)
    assert all(
        t.routing_db is not None and t.flip_share < 1 for n, t in TOLERANCES.items() if n[:4] in ("fp16", "int8")
    )
    with pytest.raises(UsageError, match="no tolerance for precision 'int4'"):
        tolerance("int4")


def test_a_plan_of_nothing_is_refused() -> None:
    for field in ("backends", "sizes", "batches"):
        with pytest.raises(UsageError, match=f"no {field}"):
            ParityPlan(**{field: ()})
    with pytest.raises(UsageError, match="device cuda with backend openvino"):
        ParityPlan(device="cuda")


def test_json_is_strict() -> None:
    import json

    given = {"a": NAN, "b": [-math.inf, np.float32(1.5)], "c": "the value was Infinity, refused", "d": (math.inf, 1)}
    text = plain_json.dumps(given)

    def refuse(word: str) -> None:
        raise AssertionError(word)

    read = json.loads(text, parse_constant=refuse)
    assert read == {"a": "nan", "b": ["-inf", 1.5], "c": "the value was Infinity, refused", "d": ["inf", 1]}
    with pytest.raises(TypeError):
        plain_json.dumps({"path": object()})


def test_a_reference_that_chose_the_lesser_expert_is_not_excused() -> None:
    """Without a near tie the file's own right choice does not make another reference right."""
    probability = np.array([[0.0, 1.0, 0.0, 0.0]], np.float32)
    right, other = np.array([[0, 1, 0, 0]], np.float32), np.array([[0, 0, 1, 0]], np.float32)
    found = compare({"gate": other}, {"gate": right}, tolerance("fp32"), Gates((4,), 1, probability))
    assert found.flips == 1
    assert not found.ok
