"""Both READMEs say the same, and what they and docs/ name is there. Reads text only: no Jittor is needed."""

import re

import pytest
from conftest import ROOT

READMES = ["README.md", "README.zh-CN.md"]
NEWCOMERS = "从计图热身赛来的同学"
PAGES = READMES + [f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = ["cgan.py", "fid.py", "plot_curves.py"]
ELSEWHERE = {"--no-deps", "--hostfile", "--python"}  # pip's, mpirun's and uv's
NUMBER = r"\d[\d.,]*\d|\d"


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def sections(page):
    """Returns the parts of a page: what stands before its first heading of the second level, and below each of them.

    The contest's newcomers read Chinese, so their section stands there alone.
    """
    parts = re.split(r"^## ", read(page), flags=re.MULTILINE)
    return [part for part in parts if not part.startswith(NEWCOMERS)]


def without_code(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def commands(text):
    return re.findall(r"^    (\S.*)", text, re.MULTILINE)


def links(text):
    """Returns the targets of a text's links and pictures, without those to the other README and within the page."""
    return [target for target in re.findall(r"\]\(([^)]*)\)", text) if not target.startswith(("#", "README"))]


def rows(text):
    return [line for line in text.splitlines() if line.startswith("|")]


def declared_flags(path):
    """Returns the flags that a script declares, read from its text."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return {"--help", *re.findall(r"\"(--\w+)\"", text), *["--generator"] * ("add_generator(parser" in text)}


@pytest.mark.parametrize(
    "facts",
    [
        commands,
        links,
        lambda text: [sorted(re.findall(NUMBER, row)) for row in rows(text)],
        lambda text: sorted(re.findall(NUMBER, text)),
        lambda text: sorted(re.findall(r"`[^`\n]+`", without_code(text))),
        lambda text: re.findall(r"^```.*?^```", text, re.MULTILINE | re.DOTALL),
    ],
    ids=["commands", "links", "rows of tables", "numbers", "names", "diagrams"],
)
def test_the_readmes_agree(facts):
    """Section by section."""
    ours, theirs = (sections(readme) for readme in READMES)
    assert len(ours) == len(theirs)
    for english, chinese in zip(ours, theirs):
        assert facts(english) == facts(chinese), english.splitlines()[0]


@pytest.mark.parametrize("readme", READMES)
def test_a_readme_is_short_and_leads_to_every_page(readme):
    text = read(readme)
    assert len(text.splitlines()) <= 170
    assert set(PAGES) - set(READMES) <= set(links(text))


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\(([^)]*)\)", read(page))
    missing = [target for target in targets if "://" not in target and not ((ROOT / page).parent / target).exists()]
    assert targets and not missing


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page):
    named = re.findall(r"\b(?:support|tests|benchmarks)/\w+\.py\b", read(page))
    modules = [
        name.replace(".", "/") + ".py" for name in re.findall(r"python -m ((?:support|benchmarks)\.\w+)", read(page))
    ]
    assert [path for path in named + modules if not (ROOT / path).is_file()] == []


@pytest.mark.parametrize("readme", READMES)
def test_the_layout_names_every_module(readme):
    layout = read(readme).split("`support/`")[1]
    modules = {path.name for path in (ROOT / "support").glob("*.py")} - {"__init__.py"}
    assert {name for name in re.findall(r"`(\w+\.py)`", layout)} == modules


@pytest.mark.parametrize("page", PAGES)
def test_flags_are_declared(page):
    """In a command by the script that it starts, elsewhere by any of the three scripts."""
    text = read(page)
    for script, module, given in re.findall(r"python (?:(\w+\.py)|-m ((?:support|benchmarks)\.\w+))([^`\n|&]*)", text):
        path = script or module.replace(".", "/") + ".py"
        path = path.replace("benchmarks/plain.py", "cgan.py")  # whose flags it takes
        assert set(re.findall(r"--[\w-]+", given)) <= declared_flags(path), path
    benchmarks = [f"benchmarks/{path.name}" for path in (ROOT / "benchmarks").glob("*.py")]
    known = ELSEWHERE.union(*(declared_flags(path) for path in SCRIPTS + benchmarks))
    assert set(re.findall(r"(?<![\w-])--\w[\w-]*", without_code(text))) <= known


def flag_facts():
    """Returns {flag of cgan.py: (its default or None, whether it is fixed in a run)}, read from its text."""
    lines = re.findall(r"flag\(\"--(\w+)\"(.*)", read("cgan.py"))
    defaults = {name: re.search(r"default=\"?([^,\"]+)", rest) for name, rest in lines}
    return {name: (defaults[name] and defaults[name][1], "fixed=True" in rest) for name, rest in lines}


@pytest.mark.parametrize("readme", READMES)
def test_defaults_are_the_programs(readme):
    facts, seen = flag_facts(), set()
    _, first, others = read(readme).partition("| `--n_epochs` ")
    for _, names, defaults, *_ in (row.split("|") for row in rows(first + others) if row.startswith("| `--")):
        names, defaults = re.findall(r"`--(\w+)`", names), re.split("[,、]", defaults)
        seen.update(names)
        assert len(names) == len(defaults) or not defaults[0].strip()
        for name, default in zip(names, defaults):
            assert default.strip(" `") == ("--lr" if name == "lr_d" else facts[name][0] or ""), name
    assert len(seen) >= 15


def test_the_flags_that_a_run_fixes_are_the_programs():
    (row,) = [row for row in rows(read("docs/resuming.md")) if "fixed: another value" in row]
    assert set(re.findall(r"`--(\w+)`", row)) == {name for name, (_, fixed) in flag_facts().items() if fixed}


@pytest.mark.parametrize("readme", READMES)
def test_the_floor_of_real_digits_is_the_one_of_the_documentation(readme):
    floor = re.search(r"\| real training digits \| ([\d.]+) \| ([\d.]+) \|", read("docs/metrics.md")).groups()
    assert f"| | {floor[0]} | {floor[1]} |" in read(readme)
