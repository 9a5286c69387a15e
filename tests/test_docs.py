"""Both READMEs say the same, and what they and docs/ name is there. Reads text only: no Jittor is needed."""

import re

import pytest
from conftest import ROOT

READMES = ["README.md", "README.zh-CN.md"]
NEWCOMERS = "写给做计图热身赛的同学"  # the contest's, who read Chinese: their section stands there alone
PAGES = READMES + [f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))]
TRANSLATED = {page: page.replace(".zh-CN", "") for page in PAGES if page.endswith(".zh-CN.md")}
SCRIPTS = ["cgan.py", "fid.py", "plot_curves.py", "support/digit_classifier.py"]
ELSEWHERE = {"--no-deps", "--hostfile", "--python", "--install"}  # pip's, mpirun's, uv's and wsl's
CODE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
MODULE = r"-m ((?:support|benchmarks)(?:\.\w+)+)"
NUMBER = r"\d[\d.,]*\d|\d"


def read(page):
    return (ROOT / page).read_text(encoding="utf-8")


def sections(page):
    """Returns the parts of a page: what stands before its first heading of the second level, and below each of them."""
    parts = re.split(r"^## ", read(page), flags=re.MULTILINE)
    return [part for part in parts if not part.startswith(NEWCOMERS)]


def commands(text):
    return [line for line in re.findall(r"^    (\S.*)", CODE.sub("", text), re.MULTILINE) if not line.startswith("#")]


def links(text):
    """Returns the targets of a text's links and pictures, whatever their language, without those to the other one."""
    targets = re.findall(r"\]\(([^)]*)\)", text)
    return [target.replace(".zh-CN", "") for target in targets if not re.match(r"(README|report|changing)\b", target)]


def rows(text):
    return [line for line in text.splitlines() if line.startswith("|")]


def path_of(module):
    return module.replace(".", "/") + ".py"


def declared_flags(path):
    """Returns the flags that a script declares, read from its text."""
    text = read(path)
    shared = ["--generator", "--keep"] if "add_generator(parser" in text else []
    return {"--help", *re.findall(r"\"(--[\w-]+)\"", text), *shared}


@pytest.mark.parametrize(
    "facts",
    [
        commands,
        links,
        lambda text: [sorted(re.findall(NUMBER, row)) for row in rows(text)],
        lambda text: sorted(re.findall(NUMBER, text)),
        lambda text: sorted(re.findall(r"`[^`\n]+`", CODE.sub("", text))),
        CODE.findall,
    ],
    ids=["commands", "links", "rows of tables", "numbers", "names", "code"],
)
@pytest.mark.parametrize("chinese", TRANSLATED)
def test_both_languages_agree(chinese, facts):
    """Section by section."""
    ours, theirs = sections(TRANSLATED[chinese]), sections(chinese)
    assert len(ours) == len(theirs)
    for english, translated in zip(ours, theirs):
        assert facts(english) == facts(translated), english.splitlines()[0]


@pytest.mark.parametrize("readme", READMES)
def test_a_readme_is_short_and_leads_to_every_page(readme):
    text = read(readme)
    assert len(text.splitlines()) <= 205
    assert {TRANSLATED.get(page, page) for page in PAGES} - set(READMES) <= set(links(text))


@pytest.mark.parametrize("readme", READMES)
def test_a_readme_shows_the_programs_own_lines(readme):
    (shown,) = re.findall(r"^```python\n(.*?)^```", read(readme), re.MULTILINE | re.DOTALL)
    lines = iter(map(str.strip, read("cgan.py").splitlines()))
    assert all(line in lines for line in shown.split("\n") if line)  # in their order


@pytest.mark.parametrize("page", PAGES)
def test_what_is_linked_or_named_exists(page):
    text = read(page)
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)]*)\)", text) if "://" not in target]
    named = re.findall(r"\b(?:support|tests|benchmarks)/[\w/]+\.\w+\b", text)
    named += map(path_of, re.findall(MODULE, text))
    assert targets and not [target for target in targets if not ((ROOT / page).parent / target).exists()]
    assert not [path for path in named if not (ROOT / path).is_file()]


@pytest.mark.parametrize("page", PAGES)
def test_flags_are_declared(page):
    """In a command by the script that it starts, elsewhere by any; a recipe declares its own."""
    text = CODE.sub("", read(page))
    for script, module, given in re.findall(rf"python (?:(\w+\.py)|{MODULE})([^`\n|&]*)", text):
        path = script or path_of(module).replace("benchmarks/plain.py", "cgan.py")  # whose flags it takes
        assert set(re.findall(r"--[\w-]+", given)) <= declared_flags(path), path
    benchmarks = [f"benchmarks/{path.name}" for path in (ROOT / "benchmarks").glob("*.py")]
    known = ELSEWHERE.union(*(declared_flags(path) for path in SCRIPTS + benchmarks))
    assert set(re.findall(r"(?<![\w-])--\w[\w-]*", text)) <= known


def flag_facts():
    """Returns {flag of cgan.py: (its default or None, whether it is fixed in a run)}, read from its text."""
    lines = re.findall(r"flag\(\"--(\w+)\"(.*)", read("cgan.py"))
    defaults = {name: re.search(r"default=\"?([^,\"]+)", rest) for name, rest in lines}
    return {name: (defaults[name] and defaults[name][1], "fixed=True" in rest) for name, rest in lines}


@pytest.mark.parametrize("readme", READMES)
def test_defaults_are_the_programs(readme):
    facts, seen = flag_facts(), set()
    flags = read(readme).partition("| `--n_epochs` ")
    for _, names, defaults, *_ in (row.split("|") for row in rows("".join(flags[1:])) if row.startswith("| `--")):
        names, defaults = re.findall(r"`--(\w+)`", names), re.split("[,、]", defaults)
        seen.update(names)
        assert len(names) == len(defaults) or not defaults[0].strip()
        for name, default in zip(names, defaults):
            assert default.strip(" `") == ("--lr" if name == "lr_d" else facts[name][0] or ""), name
    assert len(seen) >= 15


def test_the_flags_that_a_run_fixes_are_the_programs():
    (row,) = [row for row in rows(read("docs/resuming.md")) if "fixed: another value" in row]
    assert set(re.findall(r"`--(\w+)`", row)) == {name for name, (_, fixed) in flag_facts().items() if fixed}
