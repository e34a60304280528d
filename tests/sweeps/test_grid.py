"""The sweep language: what a file means, what the command line changes, and one line for each mistake."""

import itertools
import math
from typing import Any

import pytest
import yaml

from muloco_runner.compose import compose_app_config
from muloco_runner.config import ConfigError
from sweeps.grid import read_grids, values_of
from sweeps.training.expansion import expand


def one(**grid: Any) -> dict[str, Any]:
    return {"grids": [grid]}


def test_a_product_holds_every_combination_once() -> None:
    runs = expand(one(product={"seed": [0, 1], "inner_optimizer.lr": [0.01, 0.02, 0.01]}), {})
    assert sorted((run.seed, run.inner_optimizer.lr) for run in runs) == list(itertools.product([0, 1], [0.01, 0.02]))


def test_a_sweeps_run_is_what_the_command_line_composes() -> None:
    # The fast path sets values on a composed tree; Hydra itself is the oracle.
    overrides = ["algorithm=muloco", "model=29k", "method.num_workers=2", "inner_optimizer.lr=0.03", "seed=3"]
    swept = expand(one(fixed={key: yaml.safe_load(value) for key, value in (o.split("=") for o in overrides)}), {})
    assert [run.run_id for run in swept] == [compose_app_config(overrides).run.run_id]


def test_keys_apply_to_what_the_named_files_bring() -> None:
    runs = expand(one(product={"algorithm": ["diloco", "muloco"], "method.num_workers": [1, 2]}), {})
    assert {(run.algorithm, run.num_workers) for run in runs} == {
        ("DiLoCo", 1), ("DiLoCo", 2), ("MuLoCo", 1), ("MuLoCo", 2),
    }  # fmt: skip


def test_a_zip_goes_side_by_side_and_multiplies_with_the_product() -> None:
    runs = expand(one(product={"seed": [0, 1]}, zip={"model": ["29k", "42k"], "inner_optimizer.lr": [0.1, 0.2]}), {})
    assert {(run.seed, run.num_params, run.inner_optimizer.lr) for run in runs} == {
        (0, 29120, 0.1), (1, 29120, 0.1), (0, 41824, 0.2), (1, 41824, 0.2),
    }  # fmt: skip


def test_a_list_of_grids_is_a_union_without_duplicates() -> None:
    sweep = {"fixed": {"model": "29k"}, "grids": [{"product": {"seed": [0, 1]}}, {"product": {"seed": [1, 2]}}]}
    runs = expand(sweep, {})
    assert [run.seed for run in runs] == [0, 1, 2]
    assert {run.num_params for run in runs} == {29120}


def test_one_and_one_point_zero_are_one_run() -> None:
    assert len(expand(one(product={"tokens_per_parameter": [20, 20.0]}), {})) == 1


def test_a_run_is_left_out_only_if_it_matches_a_whole_line() -> None:
    sweep = one(
        product={"algorithm": ["ddp_muon", "muloco"], "seed": [0, 1]},
        exclude=[{"algorithm": "muloco", "seed": [1, 2]}],
    )
    assert {(run.algorithm, run.seed) for run in expand(sweep, {})} == {("DDP-Muon", 0), ("DDP-Muon", 1), ("MuLoCo", 0)}


def points(sweep: dict[str, Any], **overrides: list[Any]) -> list[dict[str, Any]]:
    return [point for grid in read_grids(sweep, overrides) for point in grid.points()]


CONDITIONAL = one(
    product={"kind": ["a", "b", "c"], "size": [1, 2]},
    fixed={"more": 0},
    when=[
        {"if": {"kind": ["a", "b"]}, "product": {"lr": [0.1, 0.2]}},
        {"if": {"kind": "c"}, "product": {"lr": [0.3]}},
        {"if": {"kind": "a", "size": 2}, "fixed": {"more": 1}},
    ],
    exclude=[{"kind": "b", "lr": 0.2}],
)


def test_conditions_add_values_to_matching_points_alone() -> None:
    expected = [
        (kind, size, lr, int((kind, size) == ("a", 2)))
        for kind, lrs in (("a", [0.1, 0.2]), ("b", [0.1]), ("c", [0.3]))
        for size in (1, 2)
        for lr in lrs
    ]
    found = [(p["kind"], p["size"], p["lr"], p["more"]) for p in points(CONDITIONAL)]
    assert sorted(found) == sorted(expected)


def test_the_command_line_changes_conditions_and_what_they_add() -> None:
    assert {(p["kind"], p["lr"]) for p in points(CONDITIONAL, lr=[0.1])} == {("a", 0.1), ("b", 0.1)}
    assert {(p["kind"], p["lr"]) for p in points(CONDITIONAL, kind=["c"])} == {("c", 0.3)}
    assert {p["lr"] for p in points(CONDITIONAL, lr=[9.0])} == {9.0}
    # A value that no condition asks for: the point goes without what they add.
    assert [sorted(p) for p in points(CONDITIONAL, kind=["d"], size=[1])] == [["kind", "more", "size"]]


def test_conditions_hold_for_rows_of_a_zip_too() -> None:
    sweep = one(zip={"kind": ["a", "b"], "size": [1, 2]}, when=[{"if": {"size": 2}, "product": {"lr": [0.1, 0.2]}}])
    assert sorted((p["kind"], p.get("lr")) for p in points(sweep) if "lr" in p) == [("b", 0.1), ("b", 0.2)]
    assert len(points(sweep)) == 3


def test_powers_are_exact() -> None:
    assert values_of("pow2(5..8)", "k") == [32, 64, 128, 256]
    assert all(isinstance(value, int) for value in values_of("pow2(0..3)", "k"))
    assert values_of("pow2(-2..0 by 2)", "k") == [0.25, 1]
    assert values_of("sqrt2(-4..-2)", "k") == pytest.approx([0.25, math.sqrt(2) / 4, 0.5], rel=1e-15)
    assert values_of(["pow2(1..2)", 3], "k") == [2, 4, 3]
    assert values_of("python_source", "k") == ["python_source"]


def test_the_command_line_narrows_replaces_and_adds() -> None:
    sweep = {"fixed": {"model": "29k"}, "grids": [{"product": {"inner_optimizer.lr": [0.1, 0.2]}}]}
    assert [run.inner_optimizer.lr for run in expand(sweep, {"inner_optimizer.lr": [0.3]})] == [0.3]
    assert {run.num_params for run in expand(sweep, {"model": ["42k"]})} == {41824}
    assert len(expand(sweep, {"seed": [0, 1, 2]})) == 6


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        ({}, "sweep.grids"),
        ({"grids": []}, "at least one"),
        ({"grid": []}, "sweep.grid: no such key"),
        (one(products={"seed": [0]}), "products"),
        (one(product={"seed": []}), "empty list"),
        (one(product={"sede": [0]}), "sede: no such setting; did you mean seed?"),
        (one(product={"lr": [0.1]}), "lr: no such setting; did you mean inner_optimizer.lr?"),
        (one(product={"inner_optimizer.learning_rate": [0.1]}), "did you mean inner_optimizer.lr?"),
        (one(product={"method.num_workers": [2]}), "num_workers"),
        (one(product={"seed": ["one"]}), "seed"),
        (one(product={"model": ["43k"]}), "43k"),
        (one(product={"global_batch_tokens": [2000]}), "global_batch_tokens=2000"),
        (one(product={"seed": "pow2(1...3)"}), "pow2(5..13)"),
        (one(product={"seed": "pow2(3..1)"}), "pow2(1..3)"),
        (one(zip={"seed": [0, 1], "model": ["29k"]}), "different length"),
        (one(product={"seed": [0]}, fixed={"seed": 1}), "keep one"),
        (one(product={"seed": [0]}, exclude=[{"model": "29k"}]), "no effect"),
        (one(product={"seed": [0]}, exclude=[{"seed": 0}]), "excluded"),
        (one(product={"seed": [0]}, when=[{"if": {"model": "29k"}, "fixed": {"seed": 1}}]), "no effect"),
        (one(product={"seed": [0]}, when=[{"if": {"seed": 1}, "fixed": {"model": "29k"}}]), "matches no point"),
        (one(product={"seed": [0]}, when=[{"if": {"seed": 0}, "fixed": {"seed": 1}}]), "varied by the grid"),
        (one(product={"seed": [0]}, when=[{"if": {"seed": 0}}]), "adds nothing"),
        (one(product={"seed": [0]}, when=[{"product": {"model": ["29k"]}}]), "if=None"),
        (one(product={"seed": [0]}, when={"seed": 0}), "list of lines"),
        (one(product={"seed": list(range(1000)), "inner_optimizer.lr": [n + 1.0 for n in range(1000)]}), "1,000,000"),
    ],
)
def test_a_mistake_is_one_line_that_names_its_place(sweep: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        expand(sweep, {})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_files_values_narrow_every_grid_and_drop_those_without() -> None:
    sweep = {
        "grids": [
            {"product": {"algorithm": ["ddp_adamw"], "inner_optimizer.lr": [0.1, 0.2]}},
            {"product": {"algorithm": ["ddp_muon", "muloco"], "inner_optimizer.lr": [0.3]}},
            {"zip": {"algorithm": ["diloco", "muloco"], "inner_optimizer.lr": [0.4, 0.5]}, "product": {"seed": [7]}},
            {"fixed": {"algorithm": "muloco"}, "product": {"inner_optimizer.lr": [0.6]}},
        ]
    }
    runs = expand(sweep, {"algorithm": ["muloco"]})
    assert {run.algorithm for run in runs} == {"MuLoCo"}
    assert [run.inner_optimizer.lr for run in runs] == [0.3, 0.5, 0.6]
    (run,) = expand(sweep, {"algorithm": ["ddp_adamw"], "inner_optimizer.lr": [0.3]})
    assert (run.algorithm, run.inner_optimizer.lr) == ("DDP-AdamW", 0.3)


def test_a_value_that_a_zip_does_not_have_cannot_be_put_into_it() -> None:
    with pytest.raises(ConfigError, match="zipped"):
        expand(one(zip={"seed": [0, 1], "model": ["29k", "42k"]}), {"seed": [3]})
