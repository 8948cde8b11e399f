"""Every printed command runs as printed, wherever the runs lie."""

import shlex
import subprocess

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from seg.command_line import quote_path, quote_shell, render_command, render_option

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12) | st.text("a\\'\"${}[](),:=#~!*? \n-+%&|;<>`", max_size=8)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.from_regex(r"[a-z]{1,3}", fullmatch=True), inner, max_size=3),
    max_leaves=4,
)  # fmt: skip


def read(word: str) -> object:
    """The value that a command gets: Hydra parses the word, OmegaConf resolves it."""
    override = OverridesParser.create().parse_override(word)
    assert not override.is_sweep_override()
    return OmegaConf.to_container(OmegaConf.create({"x": override.value()}), resolve=True)["x"]


@given(VALUES)
@example("outputs/a[b],c")
@example("a\\")
@example("a\\${b}\\")
@example("\\\\'\\\"")
@example("null")
@example("1e3")
@example("${oc.env:HOME}")
@settings(max_examples=200, derandomize=True, deadline=None, database=None)
def test_a_rendered_option_parses_back_to_its_value(value):
    word = render_option("x", value)
    assert read(word) == value
    quoted = quote_shell(word)
    assert quoted.startswith("$'") or shlex.split(quoted) == [word]


def test_a_plain_option_has_no_quotes():
    word = render_option("run", "outputs/2026-11-28_15-00-00-run")
    assert render_command("evaluate", word) == f"python -m seg.evaluate {word}"


NASTY = ["a b", "a[b],c", "it's", 'a"b', "$HOME", "${HOME}", "a=b", "#a", "~", "~root", "-m", "--help", "ü日本", "a\nb", "a\tb",
         "a\x1b[31m", "\x7f", "\u202eb", "a\udcffb", "\\", "a\\", "`id`", "$(id)", "*", "!!", "a;b", "a&b", "1", "null", "(a)", "{a,b}"]  # fmt: skip


def test_bash_gives_each_word_back():
    line = f"printf '%s\\0' {' '.join(map(quote_shell, NASTY))}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=True, env={})  # fmt: skip
    assert done.stdout.decode(errors="surrogateescape").split("\0")[:-1] == NASTY
    assert all(ord(c) >= 32 for c in line)  # a terminal shows the line as it is


@pytest.mark.parametrize("name", ["-m", "--help"])
def test_a_path_is_never_taken_for_a_flag(name):
    assert shlex.split(quote_path(name)) == [f"./{name}"]
