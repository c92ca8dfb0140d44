"""What README and docs/answer.md say of the published runs, held to the documents that are computed from them."""

from __future__ import annotations

import re
from functools import cache

import pytest
from test_accepted_runs import ALL, BOARD, CHECKPOINTS, ROOT, Kept


def squeezed(document: str) -> str:
    return " ".join((ROOT / document).read_text(encoding="utf-8").split())


@cache
def said(kept: Kept) -> str:
    """Return the document with its pages, each point in one line with what is below it."""
    return " ".join(kept.text().replace("\n  - ", " ").split())


def test_the_counts_in_the_answer_are_those_of_the_findings():
    """Written by hand, so that they can be read; each stands in the documents that are computed."""
    findings = " ".join(said(kept) for kept in ALL)
    answer = squeezed("README.md").partition("## The answer so far")[2].partition("## What you get")[0]
    answer += squeezed("docs/answer.md")
    counts = set(re.findall(r"\d+ of \d+|[\d.]+ × the cost|one of [A-Za-z ]+ on \d+", answer))
    assert len(counts) > 10
    assert sorted(count for count in counts if not re.search(rf"(?<!\d){re.escape(count)}(?!\d)", findings)) == []
    assert all(f"{len(kept.records):,} runs on" in answer for kept in ALL)


TRAIN, SERVE = r"\*\*At equal training time\*\*[^:]*: of", r"\*\*At equal serving time\*\*[^:]*: of"
BEST = "pairs of a task and a method, the best ensemble is"
SAID = [
    (
        "and than those of the second half in 26, level in 14 and worse in four",
        CHECKPOINTS,
        "whole training against those of its second half: better in 26, level in 14, worse in 4 of 44 pairs",
    ),
    (
        "| training time | checkpoint suite | 20 | 13 | 0 | 0 | 2 (2 unopposed) | 5 (4) |",
        CHECKPOINTS,
        rf"{TRAIN} 20 {BEST} one of checkpoints on 13, a tie of independent models and others on 4, independent"
        r" models on 2 \(on 2 of them no other ensemble of several models was run\) and a tie of others than"
        r" independent models on 1\.",
    ),
    (
        "| serving time | checkpoint suite | 20 | 8 | 0 | 0 | 5 (3 unopposed) | 7 (6) |",
        CHECKPOINTS,
        rf"{SERVE} 20 {BEST} one of checkpoints on 8, a tie of independent models and others on 6, independent models"
        r" on 5 \(on 3 of them no other ensemble of several models was run\) and a tie of others than independent"
        r" models on 1\.",
    ),
    (
        "better than twenty independent models on all six networks, at 5 to 25 % of the training time",
        CHECKPOINTS,
        r"\| checkpoints \(whole training\) \| \d+ of \d+ pairs \|"
        r"(?=.*cifar2-resnet9-small, `trak`: 3 checkpoints of each of 5 models[^;]* against 20 independent models:"
        r"[^;]* at 25 % of their)"
        + "".join(
            rf"(?=[^|]*{task}, `trak`: {n} checkpoints of one model[^;]* against 20 independent models:[^;]* at 5 % of"
            rf" their training time{enough})"
            for task, n, enough in [
                ("digits-mlp", 10, ";"),
                ("etudes-music-transformer", 4, ";"),
                ("maestro-music-transformer-small", 5, ", 10 % of that of 10 independent models, which would do"),
                ("mnist-mlp", 10, ";"),
                ("shakespeare-nanogpt-small", 5, ", 20 % of that of 5 independent models, which would do"),
            ]
        ),
    ),
    (
        "at checkpoints they add .02 to .09 on the MLPs (ten comparisons), elsewhere at most .002 (five)",
        CHECKPOINTS,
        r"20 dropout masks for the Q factor against the same without: better in 9, level in 6, worse in 0 of 15 pairs",
    ),
    (
        "two checkpoints of one model on digits-mlp with such masks save 87 % of training time, 69 % of serving time"
        " and 74 % of storage",
        CHECKPOINTS,
        r"# digits-mlp .*\| 2 checkpoints of one model \(whole training, Q factor under 20 masks\) \| 0\.470"
        r" \| 7\.7 \| 87 % [^|]*\| 69 % [^|]*\| [^|]*\| [^|]*\| 74 % [^|]*\|.*# etudes",
    ),
    (
        "five on mnist-mlp 95, 71 and 75 % (from 94, 63 and 68 %)",
        CHECKPOINTS,
        r"# mnist-mlp .*\| 5 checkpoints of one model \(whole training, Q factor under 20 masks\) \| 0\.483"
        r" \| more than 20 \| ≥ 95 % \[94 %[^|]*\| ≥ 71 % \[63 %[^|]*\| [^|]*\| [^|]*\| ≥ 75 % \[68 %[^|]*\|"
        r".*# shakespeare",
    ),
    (
        "the masks on five models 75, 68 and 75 % and 72, 68 and 72 %",
        CHECKPOINTS,
        r"# digits-mlp .*\| 20 dropout masks of each of 5 models \(Q factor only\) \| 0\.536 \| more than 20 \| ≥ 75 %"
        r" [^|]*\| ≥ 68 % [^|]*\| [^|]*\| [^|]*\| ≥ 75 % .*# mnist-mlp .*\| 20 dropout masks of each of 5 models \(Q"
        r" factor only\) \| 0\.464 \| 18 \| 72 % [^|]*\| 68 % [^|]*\| [^|]*\| [^|]*\| 72 % .*# shakespeare",
    ),
    (
        "those of the whole are better than dropout masks in all 14 comparisons",
        CHECKPOINTS,
        r"Checkpoints of the whole training against dropout: better in 14, level in 0, worse in 0 of 14 pairs",
    ),
    (
        "EK-FAC is on 1 of 7; LoGra was not run on these",
        CHECKPOINTS,
        r"At the serving time of as many independent models of `trak`, another method is significantly better than all"
        r" ensembles of `trak` that cost no more on 1 of 7 tasks: `ek-fac`",
    ),
    (
        "| 23 | 2 of 17 (8, 7), masks for TRAK's Q factor alone |",
        CHECKPOINTS,
        r"\*\*Serving time, claimed up to 60 %\*\*: reached on 2 of 17 pairs [^:]*: digits-mlp \(`trak`\),"
        r" mnist-mlp \(`trak`\)",
    ),
    (
        "| 21 | 2 of 17 (8 not, 7 open), on the etudes |",
        CHECKPOINTS,
        r"training time on 2 of 17 \(open: 7\), serving time on 2 of 17 \(open: 7\) and storage on 0 of 17 \(open: 9\)"
        r".*\*\*Training time[^:]*: reached on 2 of 17 pairs [^:]*: etudes-music-transformer \(`ek-fac`, `trak`\)\.",
    ),
    (
        "better in 21 and worse in 4 of 60 comparisons, all four on transformers",
        BOARD,
        r"checkpoints better in 21 and worse in 4 of 60 \(worse on etudes-music-transformer: \d of \d and"
        r" maestro-music-transformer-small: \d of \d\)",
    ),
    (
        "| training time | board | 33 | 10 | 3 | 1 | 1 (1 unopposed) | 18 (7) |",
        BOARD,
        rf"{TRAIN} 33 {BEST} a tie of others than independent models on 11, one of checkpoints on 10, a tie of"
        r" independent models and others on 7, one of dropout masks on 3, independent models on 1 \(on 1 of them no"
        r" other ensemble of several models was run\) and one of LoRA adapters on 1\.",
    ),
    (
        "| serving time | board | 33 | 0 | 0 | 2 | 2 (1 unopposed) | 29 (27) |",
        BOARD,
        rf"{SERVE} 33 {BEST} a tie of independent models and others on 27, a tie of others than independent models on"
        r" 2, independent models on 2 \(on 1 of them [^)]*\) and one of LoRA adapters on 2\.",
    ),
    (
        "better than the board's ensembles of TRAK on 3 of 9 tasks",
        BOARD,
        r"At the serving time of as many independent models of `trak`, another method is significantly better than all"
        r" ensembles of `trak` that cost no more on 3 of 9 tasks:",
    ),
    (
        "by 7 ensembles of dropout masks and 2 of LoRA adapters; on 5 of the six pairs",
        BOARD,
        r"reached on 6 of 33 pairs \(not on 6; open on 21\).* Of 232 ensembles of LoRA adapters 2 reach it, .* Of 174"
        r" ensembles of dropout masks 7 reach it, .* On 5 of them, [^:]*, whatever reaches it is beaten by"
        r" `ek-fac` with one model or `trak` with one model",
    ),
    (
        "deviation of up to .039 (17 configurations of 11 methods on three tasks, median .023), that of an ensemble of"
        " up to .036 (95, median .011)",
        BOARD,
        r"of up to 0\.039 \(median 0\.023\) for 17 configurations of one model \(11 methods on 3 tasks\) and of up to"
        r" 0\.036 \(median 0\.011\) for 95 ensembles",
    ),
    (
        "in the checkpoint suite, of up to .033 (22, median .013) and .054 (187, median .010)",
        CHECKPOINTS,
        r"of up to 0\.033 \(median 0\.013\) for 22 configurations of one model \(5 methods on 9 tasks\) and of up to"
        r" 0\.054 \(median 0\.010\) for 187 ensembles",
    ),
    (
        "is met on 6, 4 and 4 of the board's 33 pairs of a task and a method",
        BOARD,
        r"training time on 6 of 33 \(open: 21\), serving time on 4 of 33 \(open: 23\) and storage on 4 of 33",
    ),
    (
        "it is met on 2, 2 and 0 of 17, and open on 7, 7 and 9",
        CHECKPOINTS,
        r"training time on 2 of 17 \(open: 7\), serving time on 2 of 17 \(open: 7\) and storage on 0 of 17 \(open: 9\)",
    ),
    (
        "On 2, 3 and 3 of the board's pairs that meet it, fewer independent models are as good as the most that were",
        BOARD,
        r"\*\*Training time,.* On 2 of the pairs that reach it, [^*]* fewer independent models .*"
        r"\*\*Serving time,.* On 3 of the pairs that reach it, [^*]* fewer independent models .*"
        r"\*\*Storage,.* On 3 of the pairs that reach it, [^*]* fewer independent models ",
    ),
    (
        "on flipped MNIST labels `grad-cos` finds them at an AUROC of .94 and EK-FAC, whose LDS is higher, at .73; on"
        " people's labels of cats and dogs no method on one model is above .66",
        BOARD,
        r"methods on one model: on cifar2-resnet9-small-noisy `representer-points` 0\.66[0-4], .*; on mnist-mlp-noisy"
        r" `grad-cos` 0\.938, `knn-shapley` 0\.805, `ek-fac` 0\.729\.",
    ),
    *(
        (said, BOARD, rf"claimed up to {share} %\*\*: reached on {met} of 33 pairs \(not on {rest}; open on {left}\)")
        for said, share, met, rest, left in [
            ("| 80 % of training time | 6 of 33, on transformers | 6 | 21 |", 80, 6, 6, 21),
            ("| 60 % of serving time | 4 of 33, three of Grad-Dot, whose LDS is low | 6 | 23 |", 60, 4, 6, 23),
            ("| 80 % of storage | 4 of 33, three of Grad-Dot | 6 | 23 |", 80, 4, 6, 23),
        ]
    ),
    (
        "24 of 221 score above such models at equal training time and 130 below; without the tasks where only the last"
        " layer takes one, 21 of 160 above and 73 below",
        BOARD,
        r"At equal training time: [^.]* LoRA adapters 24 of 221 \(worse: 130; where more layers than one take adapters"
        r" 21 of 160, worse: 73\)",
    ),
    (
        "Rank 32 is better than rank 8 in 10, worse in 0 of 28 comparisons",
        BOARD,
        r"LoRA of rank 32 against rank 8: better in 10, level in \d+, worse in 0 of 28 pairs",
    ),
]
"""What is said, the runs that it is said of, and how their document says it: with every number of it."""


@pytest.mark.parametrize(("text", "kept", "computed"), SAID, ids=[text[:40] for text, *_ in SAID])
def test_what_is_said_is_said_of_the_runs_that_it_names(text, kept, computed):
    assert text.casefold() in f"{squeezed('README.md')} {squeezed('docs/answer.md')}".casefold()
    assert re.search(computed, said(kept))


def test_the_table_of_methods_in_the_readme_is_that_of_the_findings():
    written = {}
    for page in BOARD.pages:
        text = page.read_text(encoding="utf-8")
        methods = text.partition("**All methods on one model**")[2].partition("\n## ")[0]
        lds = dict(re.findall(r"^\| `([\w-]+)` \| ([\d.]+) \[", methods, re.MULTILINE))
        written[page.stem] = re.search(r"noise ceiling ([\d.]+)\.\n", text)[1], lds
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("| task | ceiling |"))
    names = [cell.strip() for cell in lines[head].strip("|").split("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[head + 2 : head + 2 + len(written)]]
    assert {row[0].strip("`") for row in rows} == {*written}
    for task, ceiling, *cells, best in rows:
        found, lds = written[task.strip("`")]
        assert [f"0{value}" for value in (ceiling, *cells)] == [found, *(lds[name] for name in names[2:-1])]
        name, value = best.split()
        assert (f"0{value}", name.strip("`")) == max((value, name) for name, value in lds.items())


def test_the_table_of_ensembles_in_the_answer_is_that_of_the_findings():
    """Its columns are k checkpoints of TRAK, and what they are held against."""
    lines = (ROOT / "docs/answer.md").read_text(encoding="utf-8").splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("| task | k |"))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[head + 2 : head + 8]]
    assert len({row[0] for row in rows}) == 6
    for task, k, *cells in rows:
        (page,) = (page for page in CHECKPOINTS.pages if page.stem == task.strip("`"))
        part = page.read_text(encoding="utf-8").partition("\n## Saved")[0].partition("**`trak`**")[2]
        found = dict(re.findall(r"^\| ([^|]+?) \| (0\.\d+) \[", part, re.MULTILINE))
        each = re.fullmatch(r"\.\d+ \((\d)\)", cells[-1])
        names = [
            "one model",
            "20 dropout masks of one model",
            f"{k} checkpoints of one model (whole training)",
            f"{k} checkpoints of one model (whole training, Q factor under 20 masks)",
            "5 independent models",
            "20 independent models",
            f"{each[1] if each else 5} checkpoints of each of 5 models (whole training)",
        ]
        assert [f"0{cell.split()[0]}" for cell in cells] == [found[name] for name in names], task
