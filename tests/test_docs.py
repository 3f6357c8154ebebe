"""The documentation is built, and every link in it leads somewhere."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sphinx", reason="it builds the documentation")

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\((?!https?://)([^)#\s]+)")


def build(source, target):
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", "--builder", "html"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, source, target], capture_output=True, text=True, check=False, env=environment, cwd=ROOT
    )


def test_documentation_is_built_without_a_warning(tmp_path):
    done = build(ROOT / "docs", tmp_path)

    assert done.returncode == 0, done.stderr
    commands = (tmp_path / "reference" / "cli.html").read_text()
    assert "resnet-deploy bench --suite benchmarks/cpu.toml" in commands


def test_a_link_that_leads_nowhere_fails_the_build(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "conf.py").write_text((ROOT / "docs" / "conf.py").read_text())
    (tmp_path / "docs" / "index.md").write_text("# Title\n\n[gone](gone.md)\n")

    assert "gone" in build(tmp_path / "docs", tmp_path / "out").stderr


PAGES = [Path("README.md"), *(page.relative_to(ROOT) for page in sorted(ROOT.glob("[be]*s/**/README.md")))]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_of_a_readme_lead_to_files(page):
    """These pages are read in the repository, beside what they link to."""
    missing = [link for link in LINK.findall((ROOT / page).read_text()) if not (ROOT / page.parent / link).exists()]

    assert not missing
