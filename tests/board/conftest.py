"""A factory of realistic runs, and one browser for the session."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tdabench.board import Row, Run, TaskInfo
from tdabench.bootstrap import Draws
from tdabench.evaluation import Evaluation
from tdabench.records import Record

CPU = {
    "machine_class": "epyc-7b13-t8-cpu",
    "cpu": "AMD EPYC 7B13",
    "cores": 8,
    "threads": 8,
    "memory_bytes": 64_000_000_000,
    "device": "cpu",
    "device_name": None,
}
GPU = CPU | {"machine_class": "epyc-7b13-t8-h100", "device": "cuda", "device_name": "NVIDIA H100 80GB HBM3"}
HOSTILE = """</script><script>alert(1)</script>"'><img src=x onerror=alert(2)>{{ 7*7 }}"""


def make_evaluation(lds: float, half: float = 0.03, n: int = 200, **changes: Any) -> Evaluation:
    """Make an evaluation whose interval, like that of its ``n`` draws, is the LDS plus and minus ``half``."""
    ends = lds + half * np.resize([1.0, -1.0], n)  # [n]
    values: dict[str, Any] = {
        "lds": lds,
        "low": lds - half,
        "high": lds + half,
        "n_queries": 160,
        "n_subsets": 100,
        "constant_queries": 0,
        "negated_better": False,
        "above_ceiling": False,
        "ceiling": 0.71,
        "basis": "made up",
        "mislabel_auroc": None,
        "draws": Draws(lds, ends, np.full(n, lds), ends),
    }
    return Evaluation(**values | changes)


def make_record(method: str = "trak", status: str = "ok", **changes: Any) -> Record:
    """Make a record as a run writes it.

    ``costs={...}`` changes its costs, ``packages={...}`` versions, ``code`` the hash of its method's file, ``dirty``
    whether the checkout had changes; all else replaces.
    """
    ok = status == "ok"
    costs = {
        "train_s": 12.5,
        "extra_train_s": 0.0,
        "fit_s": 1.25,
        "attribute_s": 0.25,
        "tune_s": 3.0,
        "wall_s": 14.1,
        "peak_host_bytes": 350_000_000,
        "baseline_host_bytes": 210_000_000,
        "storage_bytes": 1_234_567,
    }
    given = changes.pop("costs", {} if ok else None)
    code, dirty = changes.pop("code", "b" * 64), changes.pop("dirty", False)
    ensemble = changes.pop("ensemble", None)
    packages = {"torch": "2.13.0", "numpy": "2.3.1", "scipy": "1.16.0"} | changes.pop("packages", {})
    values = {
        "schema_version": 2,
        "run_id": f"{method}-0001",
        "created": "2026-03-01T12:00:00Z",
        "task": "digits-mlp",
        "task_version": "0123456789abcdef",
        "method": method,
        "options": {"proj_dim": 512, "damping": 0.001},
        "options_from": "tuned",
        "ensemble": ensemble,
        "seed": 0,
        "status": status,
        "reason": None if ok else "it did not go well",
        "process_s": 16.5,
        "costs": None if given is None else costs | given,
        "phases": {"fit": 1.25, "attribute": 0.25},
        "cpu_phases": {"fit": 1.24, "attribute": 0.25},
        "ingredients": {
            "models_trained": 1,
            "adapters_trained": 0,
            "forward_examples": 12_000,
            "backward_examples": 11_000,
        }
        if ok
        else None,
        "scores": {"sha256": "a" * 64, "shape": [200, 1000], "dtype": "float32"} if ok else None,
        "machine": CPU,
        "provenance": {
            "tdabench_version": "0.1.0",
            "commit": "0f1e2d3c4b5a69788796a5b4c3d2e1f001122334",
            "dirty": dirty,
            "sources_sha256": "5f4e3d2c1b0a",
            "method_sha256": code,
            "data_sha256": "c" * 64,
            "python": "3.11.9",
            "packages": packages,
            "matmul_precision": "highest",
            "seeds": {"models": [1000, 1001], "projection": [7]},
        },
        "command": f"tdabench run --task digits-mlp --method {method} --seed 0",
    }
    return Record.model_validate(values | changes)


def make_run(method: str = "trak", lds: float | None = 0.3, half: float = 0.03, **changes: Any) -> Run:
    """Make a run; ``lds=None`` or a status other than ok leaves it without a score."""
    known = ("constant_queries", "negated_better", "above_ceiling", "mislabel_auroc", "n")
    judged = {k: changes.pop(k) for k in known if k in changes}
    record = make_record(method, **changes)
    scored = record.status == "ok" and lds is not None
    return Run(record, make_evaluation(lds, half, **judged) if scored and lds is not None else None)


def make_row(method: str = "trak", lds: float | None = 0.3, group: int | None = None, **changes: Any) -> Row:
    """Make a row of one run, which :func:`make_run` makes."""
    return Row((make_run(method, lds, **changes),), rank_group=group)


def make_seeds(method: str = "trak", lds: Sequence[float | None] = (0.2, 0.3, 0.34), **changes: Any) -> list[Run]:
    """Make runs of one configuration, an LDS each, with the seeds 0, 1, 2; one whose LDS is None was stopped."""
    stopped = {"status": "timeout", "reason": "did not end within an hour"}
    named = changes.pop("run_id", method)
    return [
        make_run(
            method,
            value,
            run_id=f"{named}-seed-{seed}",
            command=f"tdabench run digits-mlp {method} --seed {seed}",
            **changes | {"seed": seed} | (stopped if value is None else {}),
        )
        for seed, value in enumerate(lds)
    ]


def make_ensemble(kind: str, members: int, **options: Any) -> dict[str, Any]:
    """Make the ensemble of a record."""
    return {"kind": kind, "options": options, "members": members}


def make_task(**changes: Any) -> TaskInfo:
    """Make a task that fits the records."""
    values: dict[str, Any] = {
        "name": "digits-mlp",
        "title": "Digits, two-layer perceptron",
        "version": "0123456789abcdef",
        "description": "Handwritten digits of 8 × 8 pixels; the log-odds of the right class are attributed.",
        "n_train": 1000,
        "n_queries": 160,
        "n_subsets": 100,
        "n_seeds": 10,
        "ceiling": 0.71,
        "reliability": 0.504,
    }
    return TaskInfo(**values | changes)


def _scaled(n: int, adapters: int = 0, each: float = 12.5, own: float = 0.0) -> dict[str, Any]:
    train = each * n + adapters * 1.5
    return {
        "train_s": train + own,
        "extra_train_s": train - each + own,
        "storage_bytes": 400_000 * n + 12_000 * adapters + 900_000,
    }


def make_board() -> list[Row]:
    """Make a board like a real one: methods, ensembles of them, refusals and failures."""
    rows = [
        make_row("random", 0.002, 6, costs=_scaled(1) | {"fit_s": 0.0, "attribute_s": 0.0021, "storage_bytes": 0}),
        make_row(
            "gradient-norm", -0.03, 6, costs=_scaled(1) | {"fit_s": 0.0, "attribute_s": 0.09}, negated_better=True
        ),
        make_row(
            "grad-dot", 0.121, 5, costs=_scaled(1) | {"fit_s": 0.0, "attribute_s": 0.11, "storage_bytes": 410_000}
        ),
        make_row(
            "grad-cos", 0.148, 4, costs=_scaled(1) | {"fit_s": 0.0, "attribute_s": 0.13, "storage_bytes": 410_000}
        ),
        make_row("trak", 0.205, 3, costs=_scaled(1) | {"fit_s": 0.61, "attribute_s": 0.11}),
        make_row(
            "ek-fac", 0.318, 2, costs=_scaled(1) | {"fit_s": 3.9, "attribute_s": 2.2, "peak_host_bytes": 910_000_000}
        ),
    ]
    curve = {2: 0.262, 5: 0.338, 10: 0.389, 25: 0.421}
    for n, lds in curve.items():
        rows.append(_member("trak", lds, 1 if n >= 10 else 2, "independent", n, _scaled(n), 0.72 * n, models=n))
    for d, lds in {2: 0.241, 5: 0.301, 10: 0.332, 25: 0.341}.items():
        rows.append(
            _member(
                "trak", lds, 2, "dropout", d, _scaled(1), 0.74 * d, models=1, masks=d, scope="q-only", mask="shared"
            )
        )
    for d, lds in {2: 0.322, 5: 0.401}.items():
        rows.append(
            _member("trak", lds, 1 if d > 2 else 2, "dropout", 5 * d, _scaled(5), 3.6 * d, models=5, masks=d,
                    scope="q-only", mask="shared")
        )  # fmt: skip
    for a, lds in {2: 0.252, 5: 0.312, 10: 0.347}.items():
        rows.append(_member("trak", lds, 2, "lora", a, _scaled(1, a), 0.8 * a, models=1, adapters=a, rank=4))
    for p, lds in {2: 0.221, 10: 0.236}.items():
        rows.append(_member("trak", lds, 2, "projections", p, _scaled(1), 0.72 * p, models=1, seeds=p))
    for n, lds in {2: 0.171, 5: 0.192}.items():
        rows.append(_member("grad-cos", lds, 3, "independent", n, _scaled(n), 0.14 * n, models=n))
    for c, lds in {2: 0.126, 5: 0.139}.items():
        costs = _scaled(1) | {"extra_train_s": 12.5, "storage_bytes": 400_000 * c}
        rows.append(_member("tracin", lds, 5, "checkpoints", c, costs, 0.13 * c, models=1, last=c))
    rows += [
        make_row("kfac-dense", None, status="out-of-memory", reason="needed 41 GB for one layer, 32 GB allowed"),
        make_row("retrain-loo", None, status="timeout", reason="did not end within 3600 s (fit, example 412 of 1000)"),
        make_row("knn", None, status="declined", reason="needs a class label; the task has tokens"),
        make_row(
            "dvemb", None, status="failed", reason="ValueError: expected scores of shape [200, 1000], got [200, 999]"
        ),
        make_row("trak", 0.19, run_id="trak-old", task_version="fedcba9876543210"),
    ]
    return rows


# Made up like all else here; (within a model, between models).
_CORRELATED = {
    "independent": (None, 0.24),
    "dropout": (0.34, 0.24),
    "lora": (0.33, None),
    "projections": (0.74, None),
    "checkpoints": (0.78, None),
}


def _correlations(kind: str, n: int, models: int, scope: str = "all") -> dict[str, Any]:
    n = models if scope == "q-only" else n  # only there are members fewer than counted
    within, between = _CORRELATED[kind]
    n_within, n_between = n * (n // models - 1) // 2, n * (n - n // models) // 2
    values = {"within": within if n_within else None, "between": between if n_between else None}
    return values | {"n_within_pairs": n_within, "n_between_pairs": n_between}


def _member(
    method: str, lds: float, group: int, kind: str, n: int, costs: dict[str, Any], serve: float, **options: Any
) -> Row:
    return make_row(
        method,
        lds,
        group,
        run_id=f"{method}-{kind}-{'-'.join(str(v) for v in options.values())}",
        ensemble=make_ensemble(kind, n, **options),
        correlations=_correlations(kind, n, options["models"], options.get("scope", "all")),
        costs=costs
        | {"fit_s": serve * 0.8, "attribute_s": serve * 0.2, "peak_host_bytes": 350_000_000 + 9_000_000 * n},
        ingredients={
            "models_trained": int(options.get("models", 1)),
            "adapters_trained": int(options.get("adapters", 0)),
            "forward_examples": 12_000 * n,
            "backward_examples": 11_000 * n,
        },
    )


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """Everything that makes test data, as one object."""
    return SimpleNamespace(
        record=make_record, row=make_row, ensemble=make_ensemble, task=make_task, board=make_board,
        run=make_run, seeds=make_seeds, CPU=CPU, GPU=GPU, HOSTILE=HOSTILE,
    )  # fmt: skip


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, started once; skips, saying what to install, where there is none."""
    path = next((p for name in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(name))), None)
    if path is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on PATH: install one to test the page in a browser")
    sync_api: Any = pytest.importorskip(
        "playwright.sync_api", reason="install playwright to test the page in a browser"
    )
    switches = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
    switches += ["--disable-component-update", "--disable-sync"]
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=switches)
        yield chromium
        chromium.close()
