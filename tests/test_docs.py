"""What the documents show is what runs."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from tdabench.cli import cli
from tdabench.registry import find_task
from tdabench.tuned import TUNED_FILE

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "docs" / "examples" / "my_method.py"
VARIANT = ROOT / "docs" / "examples" / "ek_fac_redrawn.py"


def tdabench(*words: str, cwd: Path) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "tdabench", *words, "--json"], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_walk_shows_the_whole_example():
    assert EXAMPLE.read_text() in (ROOT / "docs" / "new-method.md").read_text()


def test_example_is_about_thirty_lines():
    assert len(EXAMPLE.read_text().splitlines()) <= 32


def test_example_is_on_the_public_api_alone():
    imports = re.findall(r"^(?:import|from) (\S+)", EXAMPLE.read_text(), re.MULTILINE)
    assert set(imports) == {"dataclasses", "torch", "tdabench"}


@pytest.mark.parametrize("file", sorted((ROOT / "baselines").glob("*.py")), ids=lambda p: p.name)
def test_baselines_are_on_the_public_api_alone(file):
    imports = re.findall(r"^\s*(?:import|from) (tdabench\S*)", file.read_text(), re.MULTILINE)
    assert set(imports) <= {"tdabench"}


def test_example_runs_from_outside_the_repository_alone_and_wrapped(tmp_path):
    (tmp_path / "my_method.py").write_text(EXAMPLE.read_text())
    reference = "./my_method.py:MyMethod"
    alone = tdabench("run", "digits-mlp", reference, cwd=tmp_path)
    assert alone["record"]["method"] == "my_method.py:MyMethod"
    assert alone["evaluation"]["lds"] > 0.15, "an error-weighted Grad-Cos is far from chance"
    wrapped = tdabench("run", "digits-mlp", reference, "--ensemble", "dropout(models=1, masks=2)", cwd=tmp_path)
    compared = tdabench("compare", wrapped["folder"], alone["folder"], cwd=tmp_path)
    assert compared["difference"] == pytest.approx(wrapped["evaluation"]["lds"] - alone["evaluation"]["lds"])


def test_variant_runs_from_outside_the_repository_and_declines_what_it_cannot_vary(tmp_path):
    (tmp_path / "variant.py").write_text(VARIANT.read_text())
    redrawn = tdabench("run", "digits-mlp", "./variant.py:EkFacRedrawn", "--set", "damping=0.03", cwd=tmp_path)
    plain = tdabench("run", "digits-mlp", "ek-fac", "--set", "damping=0.03", cwd=tmp_path)
    assert redrawn["evaluation"]["lds"] > plain["evaluation"]["lds"] > 0.3
    options = ("--set", "labels=true")
    declined = tdabench("run", "digits-mlp", "./variant.py:EkFacRedrawn", *options, cwd=tmp_path)["record"]
    assert (declined["status"], declined["reason"]) == ("declined", "labels=true are not drawn, so not drawn anew")


def test_the_walk_names_the_file_that_tuning_changes():
    walk = (ROOT / "docs" / "new-method.md").read_text()
    section = walk[walk.index("## 3. ") : walk.index("## 4. ")]
    assert f"`{(find_task('digits-mlp').folder / TUNED_FILE).relative_to(ROOT).as_posix()}`" in section
    assert "commit the file, or tune with `--dry-run`" in section
    assert "nothing in this repository changes, unless you tune" in (ROOT / "README.md").read_text()


def test_links_between_documents_lead_somewhere():
    for document in documents():
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_readme_names_every_command():
    from tdabench.cli import _COMMANDS

    text = (ROOT / "README.md").read_text()
    assert [c for c in _COMMANDS if f"tdabench {c}" not in text] == []


def documents() -> list[Path]:
    return [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("leaderboard/*.md"), *ROOT.glob("tasks/*/*.md")]


def test_sentences_name_only_commands_that_exist():
    from tdabench.cli import _COMMANDS

    for document in documents():
        for name in re.findall(r"`tdabench ([a-z][\w-]*)", document.read_text()):
            assert name in _COMMANDS, f"{document.name} names `tdabench {name}`"


def test_readme_says_of_every_suite_what_it_is():
    from tdabench.suites import suite_names

    (told,) = re.findall(r"^\| suite \| .*?\n\n", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert set(re.findall(r"^\| `(\w+)`", told, re.MULTILINE)) == {*suite_names()}


def test_it_is_said_how_results_are_offered_and_that_nothing_checks_them():
    """Until there is a command for it."""
    from tdabench.cli import _COMMANDS

    assert not {"submit", "check"} & {*_COMMANDS}, "now the documents can say more"
    for name in ("README.md", "CONTRIBUTING.md", "leaderboard/README.md"):
        text = " ".join((ROOT / name).read_text().lower().split())
        assert "by a pull request with run folders" in text, name
        assert re.search("not checked automatically yet|nothing checks them automatically yet", text), name


def shown_suites() -> list[str]:
    """Return every suite that a document shows whole."""
    blocks = [b for d in documents() for b in re.findall(r"^```toml\n(.*?)^```$", d.read_text(), re.M | re.S)]
    return [block for block in blocks if block.startswith("title = ")]


def test_the_walk_shows_a_suite_of_ten_lines_for_a_comparison_at_equal_cost(tmp_path, monkeypatch):
    """Its jobs are checked as a run would check them, and nothing is measured."""
    from tdabench.jobs import plan
    from tdabench.suites import find_suite

    (text,) = (text for text in shown_suites() if "MyMethod" in text)
    assert len(text.splitlines()) == 10
    (tmp_path / "my_suite.toml").write_text(text)
    (tmp_path / "my_method.py").write_text(EXAMPLE.read_text())
    monkeypatch.chdir(tmp_path)
    plans = [plan(job) for job in find_suite("my_suite.toml").jobs]
    assert {p.method for p in plans} == {"my_method.py:MyMethod", "trak"}
    kinds = {("" if p.ensemble is None else p.ensemble.kind) for p in plans}
    assert kinds == {"", "independent", "dropout", "lora", "checkpoints"}
    assert f"here {len(plans)} runs" in (ROOT / "docs" / "new-method.md").read_text()


def test_keys_of_a_suite_are_documented():
    from tdabench.suites import LeftOut, _Block, _File

    walks = "".join((ROOT / "docs" / f"new-{what}.md").read_text() for what in ("method", "task"))
    for key in {*_File.model_fields, *_Block.model_fields, *LeftOut.model_fields}:
        assert re.search(rf"`{key}`|`\[\[{key}\]\]`|^{key} = ", walks, re.MULTILINE), key
    assert re.search(r"^- `seeds`: ", walks, re.MULTILINE)


def shown_commands() -> list[str]:
    """Return every command that a document shows in a block of its own."""
    found = []
    for document in documents():
        # Blocks of every language are matched, else the end of one would be taken for the beginning of the next.
        for block in re.findall(r"^ *```\w*\n(.*?)^ *```$", document.read_text(), re.MULTILINE | re.DOTALL):
            found += [line.strip() for line in block.splitlines() if line.lstrip().startswith("tdabench ")]
    return sorted(set(found))


def test_the_walks_show_commands():
    shown = {" ".join(line.split()[:3]) for line in shown_commands()}
    assert {"tdabench ground-truth merge", "tdabench tune digits-mlp", "tdabench suite ./my_suite.toml"} <= shown
    assert {"tdabench findings out/at-equal-cost", "tdabench archive out/at-equal-cost/*--my-method--*"} <= shown


@pytest.mark.parametrize("line", shown_commands())
def test_commands_that_are_shown_are_understood(line):
    """Words are parsed as they would be on the command line, and nothing is done."""
    command: click.Command = cli
    context = click.Context(cli, info_name="tdabench", **cli.context_settings)  # a command keeps the first help option
    words = shlex.split(line, comments=True)[1:]
    while isinstance(command, click.Group):
        name = words.pop(0)
        found = command.get_command(context, name)
        assert found is not None, f"there is no command {name}"
        command = found
    values, rest, _ = command.make_parser(click.Context(command, parent=context)).parse_args(words)
    assert rest == []
    arguments = [param for param in command.params if isinstance(param, click.Argument)]
    given = {name for name, value in values.items() if isinstance(value, (str, tuple)) and value}
    assert {a.name for a in arguments if a.required} <= given
