"""The published tables, read with this project's names. Each file of `data` states its source in its first line."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis.laws.solver import Array

DATA = Path(__file__).parent / "data"
ALGORITHMS = {"DP_AdamW": "DDP-AdamW", "DP_Muon": "DDP-Muon", "DiLoCo_K1": "DiLoCo K=1", "MuLoCo_K1": "MuLoCo K=1"}
"""Names in the files -> series of a report."""
TOKENS_PER_PARAMETER = 20.0


def read(name: str) -> pd.DataFrame:
    return pd.read_csv(DATA / f"{name}.csv", comment="#")


def swept_losses() -> pd.DataFrame:
    """Best losses of the five swept sizes and K at most 1: series, num_params, num_tokens, flops, loss."""
    table = read("muloco_final_eval_loss")
    table = table[(table["K"] <= 1) & (table["N_label"] != "15B")]
    names = table["method"].where(table["K"] == 0, table["method"] + "_K1")
    return pd.DataFrame(
        {
            "series": names.map(ALGORITHMS),
            "num_params": table["N_exact"],
            "num_tokens": table["tokens_readme"],
            "flops": 6.0 * table["N_exact"] * table["tokens_readme"],
            "loss": table["loss"],
        }
    ).reset_index(drop=True)


def losses_by_num_workers() -> pd.DataFrame:
    """Loss of DiLoCo and MuLoCo at K = 1 and 16 over data parallel's: algorithm, num_workers, num_params, relative."""
    table = read("muloco_final_eval_loss")
    partner = {"DiLoCo": "DP_AdamW", "MuLoCo": "DP_Muon"}
    parallel = table[table["K"] == 0].set_index(["method", "N_exact"])["loss"]
    rows = table[table["K"] >= 1]
    against = [parallel[partner[m], n] for m, n in zip(rows["method"], rows["N_exact"], strict=True)]
    return pd.DataFrame(
        {
            "algorithm": rows["method"],
            "num_workers": rows["K"],
            "num_params": rows["N_exact"],
            "loss": rows["loss"],
            "relative": rows["loss"] / against - 1,
        }
    ).reset_index(drop=True)


def critical_batches() -> pd.DataFrame:
    """Critical batches by the 1% rule: series, num_tokens, critical_batch_size, exponent of the legend.

    Token counts are the published text's where the point is drawn there (3.0, 8.16, 18.12 and 35.23 billion: the
    readings agree within 0.2%). The largest size is drawn at 61.9 billion, the text says 61.4: as drawn, because the
    legend's exponents are fits to what was drawn.
    """
    table = read("muloco_cbs_points_and_fits")
    tokens = [3.0e9, 8.16e9, 18.12e9, 35.23e9, 61.9e9]
    columns = [name for name in table.columns if name.startswith("D=")]
    return pd.DataFrame(
        [
            {
                "series": ALGORITHMS[str(row["method"])],
                "num_tokens": num_tokens,
                "num_tokens_as_read": float(column[2:]),
                "critical_batch_size": float(row[column]),
                "exponent": float(row["alpha_legend"]),
            }
            for row in table.to_dict("records")
            for column, num_tokens in zip(columns, tokens, strict=True)
        ]
    )


def iso_loss_curve(quantity: str, series: str) -> tuple[Array, Array]:
    """Compute (flops) and ratio of a plotted curve; `quantity` is compute_ratio or time_ratio."""
    table = read("muloco_iso_loss_ratios_from_plots")
    own = {ours: theirs for theirs, ours in ALGORITHMS.items()}[series]
    rows = table[(table["quantity"] == quantity) & (table["method"] == own)]
    return rows["flops_C"].to_numpy(dtype=float), rows["ratio_vs_DP_AdamW"].to_numpy(dtype=float)


def charles_losses() -> pd.DataFrame:
    """Tuned losses of Charles et al. 2025, Table 4: M (DP, 1, 2, 4, 8), num_params, loss."""
    table = read("charles2025_table4_eval_loss")
    table = table[table["tuned"] == 1]
    return pd.DataFrame({"M": table["M"], "num_params": table["N"].astype(float), "loss": table["eval_loss"]})


def wall_clock_hours() -> pd.DataFrame:
    """End of the plotted 15B curves: method, bandwidth_gbits, hours."""
    table = read("muloco_15b_wallclock_from_plot")
    gigabits = table["bandwidth"].str.removesuffix("Gbps").astype(float)
    return pd.DataFrame({"method": table["method"], "bandwidth_gbits": gigabits, "hours": table["end_hours"]})


def steps_to_target() -> pd.DataFrame:
    """Steps to each size's target loss, Zhang et al. 2024: a row a size, indexed by num_params, a column a batch in
    sequences of 512 tokens.
    """
    table = read("zhang2024_steps_to_target").set_index("num_params")
    return table.rename(columns=float).astype(float)
