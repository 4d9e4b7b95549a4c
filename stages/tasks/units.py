r"""Units and other words beside a number: what they mean, and whether two answers name the same.

parse_unit("square inches")   # an area
parse_unit("million dollars") # money, times 10^6
parse_unit("blue marbles")    # a noun, compared by its words
parse_unit("is not a root")   # None: these words change the value
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from stages.tasks.number_words import MULTIPLIERS


class Unit(NamedTuple):
    """What the words beside a number say.

    Attributes:
      dimension: base unit → exponent, sorted, such as `(("m", 1), ("s", -1))`; empty if the words are no known unit.
      size: the unit in base units, such as 1/100 for cents.
      words: the words themselves in singular, such as {"blue", "marble"}, without those that say nothing.
      scale: what a word such as `million` multiplies the number by.
    """

    dimension: tuple[tuple[str, int], ...]
    size: Fraction
    words: frozenset[str]
    scale: Fraction

    @property
    def is_named(self) -> bool:
        """Whether there is a unit or a noun beside any factor."""
        return bool(self.words)


NO_UNIT = Unit((), Fraction(1), frozenset(), Fraction(1))

_Scaled = tuple[str, dict[str, int]]
# name and its spellings → (size in base units, dimension). Metric and US customary.
_BASE: dict[str, _Scaled] = {
    "mm millimeter millimetre": ("1/1000", {"m": 1}),
    "cm centimeter centimetre": ("1/100", {"m": 1}),
    "dm decimeter decimetre": ("1/10", {"m": 1}),
    "m meter metre": ("1", {"m": 1}),
    "km kilometer kilometre": ("1000", {"m": 1}),
    "nm nanometer nanometre": ("1/1000000000", {"m": 1}),
    "in inch": ("0.0254", {"m": 1}),
    "ft foot feet": ("0.3048", {"m": 1}),
    "yd yard": ("0.9144", {"m": 1}),
    "mi mile": ("1609.344", {"m": 1}),
    "ms millisecond": ("1/1000", {"s": 1}),
    "s sec second": ("1", {"s": 1}),
    "min minute": ("60", {"s": 1}),
    "h hr hour": ("3600", {"s": 1}),
    "day": ("86400", {"s": 1}),
    "week": ("604800", {"s": 1}),
    "month": ("1", {"month": 1}),
    "yr year": ("12", {"month": 1}),
    "decade": ("120", {"month": 1}),
    "century": ("1200", {"month": 1}),
    "mg milligram": ("1/1000", {"g": 1}),
    "g gram": ("1", {"g": 1}),
    "kg kilogram": ("1000", {"g": 1}),
    "lb pound": ("453.59237", {"g": 1}),
    "oz ounce": ("28.349523125", {"g": 1}),
    "mL ml milliliter millilitre": ("1/1000000", {"m": 3}),
    "L l liter litre": ("1/1000", {"m": 3}),
    "gal gallon": ("0.003785411784", {"m": 3}),
    "qt quart": ("0.000946352946", {"m": 3}),
    "pt pint": ("0.000473176473", {"m": 3}),
    "cup": ("0.0002365882365", {"m": 3}),
    "dollar USD usd buck": ("1", {"dollar": 1}),
    "cent penny pence": ("1/100", {"dollar": 1}),
    "euro EUR": ("1", {"euro": 1}),
    "sterling GBP": ("1", {"sterling": 1}),
    "yen": ("1", {"yen": 1}),
    "rupee": ("1", {"rupee": 1}),
    "degree deg": ("1", {"degree": 1}),
    "radian rad": ("1", {"radian": 1}),
    "celsius": ("1", {"celsius": 1}),
    "fahrenheit": ("1", {"fahrenheit": 1}),
    "K kelvin": ("1", {"kelvin": 1}),
    "N newton": ("1000", {"g": 1, "m": 1, "s": -2}),
    "J joule": ("1000", {"g": 1, "m": 2, "s": -2}),
    "kJ kilojoule": ("1000000", {"g": 1, "m": 2, "s": -2}),
    "W watt": ("1000", {"g": 1, "m": 2, "s": -3}),
    "kW kilowatt": ("1000000", {"g": 1, "m": 2, "s": -3}),
    "Pa pascal": ("1000", {"g": 1, "m": -1, "s": -2}),
    "kPa kilopascal": ("1000000", {"g": 1, "m": -1, "s": -2}),
    "Hz hertz": ("1", {"s": -1}),
    "C coulomb": ("1", {"coulomb": 1}),
    "A amp ampere": ("1", {"coulomb": 1, "s": -1}),
    "V volt": ("1", {"volt": 1}),
    "mol mole": ("1", {"mole": 1}),
    "eV electronvolt": ("1", {"eV": 1}),
    "keV": ("1000", {"eV": 1}),
    "MeV": ("1000000", {"eV": 1}),
    "GeV": ("1000000000", {"eV": 1}),
    "mph": ("0.44704", {"m": 1, "s": -1}),
    "kph kmh": ("5/18", {"m": 1, "s": -1}),
}
_UNITS = {name: (Fraction(size), dims) for names, (size, dims) in _BASE.items() for name in names.split()}
GLUED_UNITS = (
    r"[cmk]m|ft|feet|foot|in|inch(?:es)?|yd|yards?|mi|miles?|met(?:er|re)s?|units?|degrees?|radians?|rad|hrs?|hours?|"
    r"min|minutes?|sec|seconds?|ms|days?|weeks?|months?|years?|dollars?|USD|cents?|pounds?|lbs?|oz|[mk]g|grams?|mph|"
    r"people|men|ways|m[lL]|lit(?:er|re)s?|gallons?"
)
"""Units that are recognized without a space before them, as a pattern: `5cm`. `5m` is a product."""
_IRREGULAR = {"feet": "foot", "inches": "inch", "pennies": "penny", "centuries": "century", "people": "person"}
_GENERIC = frozenset(
    {
        "unit", "of", "the", "a", "an", "total", "approximately", "about", "exactly", "only", "just", "approx",
        "roughly", "around", "old", "tall", "long", "wide", "high", "deep", "altogether", "left", "remaining",
    }
)  # fmt: skip
"""Words that neither name a unit nor change the value."""
CHANGING_WORDS = frozenset(
    {
        "not", "no", "non", "never", "none", "neither", "nor", "cannot", "can't", "isn't", "aren't", "don't",
        "doesn't", "without", "except", "unless", "least", "most", "less", "more", "fewer", "greater",
        "smaller", "larger", "than", "over", "under", "above", "below", "between", "beyond", "either", "or",
        "and", "but", "if", "is", "are", "was", "were", "be", "been", "has", "have", "had", "does", "do", "did",
        "will", "would", "could", "should", "may", "might", "must", "false", "wrong", "incorrect", "impossible",
        "invalid", "undefined", "unknown", "undetermined", "indeterminate", "to", "by", "for", "with", "into",
        "times", "plus", "minus", "divided", "multiplied", "mod", "modulo", "choose", "factorial", "pi", "sqrt",
        "sin", "cos", "tan", "log", "ln", "root", "percent", "squared", "cubed", "power", "th", "half", "third",
        "quarter", "double", "triple", "twice", "thrice", "plus-minus",
    }
)  # fmt: skip
"""Words that change the value of a number, or show that none is stated."""
_TOKEN = re.compile(r"[A-Za-zμ°][A-Za-zμ'’-]*|\^\s*\{?\s*(?P<power>-?[0-9])\s*\}?|/|[0-9]|\S")


@lru_cache(maxsize=4_096)
def parse_unit(text: str) -> Unit | None:
    """Return what the words beside a number say; None if they change the value or are not words.

    Args:
      text: plain words with `/` and `^2`, without LaTeX commands.
    """
    tokens = [match for match in _TOKEN.finditer(text.replace("’", "'")) if match[0] not in ".,()*~"]
    scale = Fraction(1)
    while tokens and (factor := MULTIPLIERS.get(singular(tokens[0][0].lower()))):
        scale, tokens = scale * factor, tokens[1:]
    words = frozenset(singular(match[0]).lower() for match in tokens if match[0][0].isalpha()) - _GENERIC
    known = _parse_known(tokens)
    if known is not None:
        return Unit(*known, words if known[0] else frozenset(), scale)
    lowered = {match[0].lower() for match in tokens} | words
    if lowered & CHANGING_WORDS or lowered & MULTIPLIERS.keys() or len(tokens) > 8:
        return None
    if any(not match[0][0].isalpha() and match[0] != "/" and not match["power"] for match in tokens):
        return None
    return Unit((), Fraction(1), words, scale)


def compare_units(answer: Unit, reference: Unit) -> Fraction | None:
    """Return the factor that turns a number in the answer's unit into the reference's; None if they exclude each other.

    A unit on one side only is dropped, and so are further words on one side (`5 blue marbles`, `5 marbles`). Known
    units must have the same dimension and are converted, so `30 minutes` equals `0.5 hours` and not `30 hours`.
    """
    factor = answer.scale / reference.scale
    if not answer.is_named or not reference.is_named:
        return factor
    if answer.dimension and reference.dimension:
        if _is_angle_and_temperature(answer, reference):
            return factor
        return factor * answer.size / reference.size if answer.dimension == reference.dimension else None
    return factor if answer.words <= reference.words or reference.words <= answer.words else None


def _is_angle_and_temperature(answer: Unit, reference: Unit) -> bool:
    """Return whether one side says only "degrees" and the other degrees of which scale."""
    bases = {answer.dimension, reference.dimension}
    return (("degree", 1),) in bases and bool(bases & {(("celsius", 1),), (("fahrenheit", 1),)})


def _parse_known(tokens: list[re.Match[str]]) -> tuple[tuple[tuple[str, int], ...], Fraction] | None:
    """Return the dimension and size of a product of known units; None if any token is something else."""
    size, dimension = Fraction(1), dict[str, int]()
    sign, power, found = 1, 1, False
    last: tuple[Fraction, dict[str, int], int] | None = None
    for match in tokens:
        token = match[0]
        lowered = token.lower()
        if lowered in ("/", "per"):
            sign, last = -1, None
        elif lowered in ("square", "sq", "cubic", "cu"):
            power = 2 if lowered.startswith("sq") else 3
        elif match["power"] or lowered in ("squared", "cubed"):
            if last is None:
                return None
            extra = (int(match["power"]) if match["power"] else 2 if lowered == "squared" else 3) - 1
            size *= last[0] ** (last[2] * extra)
            _add(dimension, last[1], last[2] * extra)
            last = None
        elif (unit := _lookup(token)) is not None:
            size *= unit[0] ** (sign * power)
            _add(dimension, unit[1], sign * power)
            last, power, found = (unit[0], unit[1], sign), 1, True
        elif lowered not in _GENERIC and lowered != "units":
            return None
    if not found and power != 1:  # "square units"
        return (), Fraction(1)
    if "celsius" in dimension or "fahrenheit" in dimension:
        dimension.pop("degree", None)
    return tuple(sorted((base, n) for base, n in dimension.items() if n)), size


def _add(dimension: dict[str, int], unit: dict[str, int], times: int) -> None:
    for base, exponent in unit.items():
        dimension[base] = dimension.get(base, 0) + exponent * times


def _lookup(word: str) -> tuple[Fraction, dict[str, int]] | None:
    """Return a known unit. Abbreviations are read with their case, since `mW` is not `MW`."""
    if word in _UNITS:
        return _UNITS[word]
    lowered = word.lower()
    names = (singular(lowered), lowered, lowered.removesuffix("s"))
    return next((_UNITS[name] for name in names if len(name) > 1 and name in _UNITS), None)


def singular(word: str) -> str:
    """Return the singular of a word that ends like an English plural, or the word."""
    lowered = word.lower()
    if lowered in _IRREGULAR:
        return _IRREGULAR[lowered]
    return word[:-1] if len(word) > 3 and lowered.endswith("s") and not lowered.endswith(("ss", "us")) else word
