"""What README says of the published runs, held to the documents that are computed from them."""

from __future__ import annotations

import re

import pytest
from test_accepted_runs import ALL, BOARD, CHECKPOINTS, ROOT


def squeezed(document: str) -> str:
    return " ".join((ROOT / document).read_text(encoding="utf-8").split())


def test_the_counts_in_the_readme_are_those_of_the_findings():
    """Written by hand, so that they can be read; each stands in the documents that are computed."""
    findings = " ".join(squeezed(kept.document) for kept in ALL)
    answer = squeezed("README.md").partition("## The answer so far")[2].partition("## What you get")[0]
    counts = set(re.findall(r"\d+ of \d+|[\d.]+ × the cost|one of [A-Za-z ]+ on \d+", answer))
    assert len(counts) > 10
    assert sorted(count for count in counts if not re.search(rf"(?<!\d){re.escape(count)}(?!\d)", findings)) == []
    assert f"{len(BOARD.records):,} runs" in answer


TRAIN, SERVE = r"\*\*At equal training time\*\*[^:]*: of", r"\*\*At equal serving time\*\*[^:]*: of"
BEST = "pairs of a task and a method, the best ensemble is"
SAID = [
    (
        "worse in 26 comparisons with as many of the whole, level in 16 and better in two",
        CHECKPOINTS,
        "whole training against those of its second half: better in 26, level in 16, worse in 2 of 44 pairs",
    ),
    (
        "best ensemble there is one of checkpoints on 11 of 14 pairs",
        CHECKPOINTS,
        rf"{TRAIN} 14 {BEST} one of checkpoints on 11,",
    ),
    (
        "at the serving time of five models they are best on 6 of the pairs, and independent models alone on 4",
        CHECKPOINTS,
        rf"{SERVE} 14 {BEST} one of checkpoints on 6, a tie of independent models and others on 4 and"
        r" independent models on 4 ",
    ),
    (
        "better than all twenty on all six networks",
        CHECKPOINTS,
        r"\| checkpoints \(whole training\) \| \d+ of \d+ pairs \|"
        r"(?=.*cifar2-resnet9-small, `trak`: 3 checkpoints of each of 5 models[^;]* against 20 independent models:)"
        + "".join(
            rf"(?=[^|]*{task}, `trak`: {n} checkpoints of one model[^;]* against 20 independent models:)"
            for task, n in [
                ("digits-mlp", 10),
                ("etudes-music-transformer", 4),
                ("maestro-music-transformer-small", 5),
                ("mnist-mlp", 10),
                ("shakespeare-nanogpt-small", 2),
            ]
        ),
    ),
    (
        "EK-FAC is on 1 of 7",
        CHECKPOINTS,
        r"At the serving time of as many independent models of `trak`, another method is significantly better than all"
        r" ensembles of `trak` that cost no more on 1 of 7 tasks: `ek-fac`",
    ),
    (
        "the claimed serving time is saved on 2 of its 11 pairs",
        CHECKPOINTS,
        r"\*\*Serving time, claimed up to 60 %\*\*: reached on 2 of 11 pairs [^:]*: digits-mlp \(`trak`\),"
        r" mnist-mlp \(`trak`\)",
    ),
    (
        "better in 34 and worse in 7 of 60 comparisons",
        BOARD,
        r"checkpoints better in 34 and worse in 7 of 60 \(worse on etudes-music-transformer: \d of \d,"
        r" maestro-music-transformer-small: \d of \d and shakespeare-nanogpt-small: \d of \d\)",
    ),
    (
        "one of checkpoints on 15, one of dropout masks on 3, one of LoRA adapters on 2 and the five models alone on 3",
        BOARD,
        rf"{TRAIN} 33 {BEST} one of checkpoints on 15, a tie of others than independent models on 8, independent models"
        r" on 3 \(on 3 of them no other ensemble of several models was run\), one of dropout masks on 3, a tie of"
        r" independent models and others on 2 and one of LoRA adapters on 2\.",
    ),
    (
        "At their serving time it is one of checkpoints on 1, and the five models alone on 11",
        BOARD,
        rf"{SERVE} 33 {BEST} a tie of independent models and others on 13, independent models on 11 .*, one of"
        r" checkpoints on 1 and",
    ),
    (
        "better than the board's ensembles of TRAK on 6 of 9 tasks",
        BOARD,
        r"At the serving time of as many independent models of `trak`, another method is significantly better than all"
        r" ensembles of `trak` that cost no more on 6 of 9 tasks:",
    ),
    (
        "by 18 ensembles of dropout masks and 7 of LoRA adapters",
        BOARD,
        r"reached on 9 of 33 pairs \(not on 7; open on 17\).* Reached by 7 of 232 ensembles of LoRA adapters, .* and by"
        r" 18 of 174 ensembles of dropout masks",
    ),
    (
        "differs by up to .086 (17 of them, median .056), that of an ensemble by up to .079 (95, median .022)",
        BOARD,
        r"of 17 methods on one model by up to 0\.086 \(median 0\.056\) and of 95 ensembles by up to 0\.079"
        r" \(median 0\.022\)",
    ),
    (
        "As claimed on 4 of 33 and 5 of 33 pairs",
        BOARD,
        r"training time on 9 of 33 \(open: 17\), serving time on 4 of 33 \(open: 22\) and storage on 5 of 33",
    ),
    (
        "40 of 221 score above such models at equal training time and 152 below; without the tasks where only the last"
        " layer takes one, 37 of 160 above and 95 below",
        BOARD,
        r"at equal training time .* LoRA adapters 40 of 221 \(worse: 152; where more layers than one take adapters 37"
        r" of 160, worse: 95\)",
    ),
    (
        "Rank 32 is better than rank 8 in 17, worse in 6 of 28 comparisons",
        BOARD,
        r"LoRA of rank 32 against rank 8: better in 17, level in \d+, worse in 6 of 28 pairs",
    ),
]
"""What README says, the runs that it is said of, and how their document says it: with every number of it."""


@pytest.mark.parametrize(("text", "kept", "computed"), SAID, ids=[text[:40] for text, *_ in SAID])
def test_what_the_readme_says_is_said_of_the_runs_that_it_names(text, kept, computed):
    assert text.casefold() in squeezed("README.md").casefold()
    assert re.search(computed, squeezed(kept.document))


def test_the_table_of_methods_in_the_readme_is_that_of_the_findings():
    written = {}
    for part in re.split(r"^## ", (ROOT / BOARD.document).read_text(encoding="utf-8"), flags=re.MULTILINE):
        if ceiling := re.search(r"noise ceiling ([\d.]+)\.\n", part):
            methods = part.partition("**All methods on one model**")[2].partition("\n### ")[0]
            lds = dict(re.findall(r"^\| `([\w-]+)` \| ([\d.]+) \[", methods, re.MULTILINE))
            written[part.partition("\n")[0]] = ceiling[1], lds
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
