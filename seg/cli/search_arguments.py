"""Command line of seg.tune: options with several values, which Hydra would run as a sweep."""

from argparse import Namespace
from collections.abc import Sequence

from hydra.core.override_parser.types import Quote, QuotedString

from seg.cli.compose import parse_overrides
from seg.cli.renamed_options import rename_words
from seg.errors import UserError


def search_overrides(arguments: Namespace) -> list[str]:
    """Return the overrides for Hydra, with the searched options in ``search``."""
    if arguments.multirun:
        raise UserError(
            "-m: seg.tune searches without it; leave it out, or sweep with seg.train -m"
        )
    return gather_searched(arguments.overrides)


def gather_searched(words: Sequence[str]) -> list[str]:
    """Move searched options into the option ``search``, as Hydra would run them as a sweep.

    Args:
        words: overrides of the command line.

    Returns:
        The overrides, with all searched options in a single ``search=[...]``.

    Raises:
        UserError: if a word can't be parsed.
    """
    # Collect the searched options, typed directly or in a list.
    rest = [word for word in words if not is_searched(word)]
    typed = [word for word in words if word not in rest]
    given = [word for word in rest if word.startswith("search=")]
    for word in given:
        value = parse_overrides([word])[0].value()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise UserError(f"{word}: a list of words is needed, 'search=[\"a.b=choice(1,2)\"]'")
        typed = [*rename_words(value), *typed]
    if not typed:
        return rest
    quoted = ",".join(QuotedString(word, Quote.double).with_quotes() for word in typed)
    return [*(word for word in rest if word not in given), f"search=[{quoted}]"]


def is_searched(word: str) -> bool:
    """Return True if an override gives an option several values.

    Raises:
        UserError: if it can't be parsed, with Hydra's reason for a wrong function call.
    """
    try:
        return parse_overrides([word])[0].is_sweep_override()
    except UserError as error:
        reason = str(error.__cause__).partition("\n")[0]
        if "while evaluating" in reason:
            raise UserError(f"{word}: {reason}") from error
        raise
