"""Expressions of sizes in a `.pt2`: what they may look like. They are checked only; nothing here evaluates them."""

import re
from collections.abc import Callable

from gossamer.errors import CorruptFile

MOST_TEXT = 1 << 16  # characters of an expression
MOST_NESTED = 64  # brackets inside one another
MOST_DIGITS = 19  # of a number: a size is a 64-bit integer
MOST_POWER = 64
_FUNCTIONS = """
Symbol Integer Rational Float Add Mul Pow Abs Max Min Mod PythonMod FloorDiv CeilDiv CleanDiv IntTrueDiv
FloatTrueDiv PowByNatural FloatPow ModularIndexing Where ToFloat TruncToInt TruncToFloat FloorToInt CeilToInt
RoundToInt Identity floor ceiling Eq Ne Lt Le Gt Ge And Or Not Equality Unequality StrictLessThan
StrictGreaterThan LessThan GreaterThan
"""
FUNCTIONS = frozenset(_FUNCTIONS.split())
POWERS = frozenset({"Pow", "PowByNatural", "FloatPow"})
TOKEN = re.compile(
    r"\s*(?:(\d+(?:\.\d+)?(?:e[+-]?\d{1,3})?)|('[\w.+-]{1,64}')|([A-Za-z_]\w*)|(\*\*|//|[=<>!]=|.))", re.A
)
BETWEEN = frozenset(("+", "-", "*", "/", "//", "%", "**", "==", "!=", "<", "<=", ">", ">=", "&", "|"))


def check_sizes(text: str) -> None:
    """Raise CorruptFile unless the text is arithmetic of numbers and named sizes, short, flat and with small powers."""
    try:
        if len(text) > MOST_TEXT:
            raise ValueError
        _Parser([match.groups() for match in TOKEN.finditer(text.rstrip())]).whole()
    except ValueError as error:
        raise CorruptFile(f"{text[:80]!r} is no expression of sizes that is read") from error


class _Parser:
    """Recursive descent over tokens: each is a number, a quoted name, a name or a sign. Raises ValueError."""

    def __init__(self, tokens: list[tuple[str | None, ...]]) -> None:
        self.tokens, self.at, self.depth = tokens, 0, 0

    def whole(self) -> None:
        self.terms()
        if self.at != len(self.tokens):
            raise ValueError

    def sign(self) -> str | None:
        return self.tokens[self.at][3] if self.at < len(self.tokens) else None

    def take(self, sign: str) -> None:
        if self.sign() != sign:
            raise ValueError
        self.at += 1

    def inside(self, part: Callable[[], None]) -> None:
        self.take("(")
        self.depth += 1
        if self.depth > MOST_NESTED:
            raise ValueError
        part()
        self.depth -= 1
        self.take(")")

    def terms(self) -> None:
        self.term()
        power = False
        while (sign := self.sign()) in BETWEEN:
            self.at += 1
            if sign == "**":
                if power or not 0 <= self.number() <= MOST_POWER:
                    raise ValueError
            else:
                self.term()
            power = sign == "**"

    def term(self) -> None:
        while self.sign() in ("-", "+", "~"):
            self.at += 1
        if self.sign() == "(":
            return self.inside(self.terms)
        if self.at >= len(self.tokens):
            raise ValueError
        number, quoted, name, _ = self.tokens[self.at]
        if number is not None:
            self.number()
        elif quoted is not None or name is not None:
            self.at += 1
            if name is not None and self.sign() == "(":
                self.call(name)
        else:
            raise ValueError
        return None

    def call(self, name: str) -> None:
        if name not in FUNCTIONS:
            raise ValueError
        self.inside(self.power if name in POWERS else self.arguments)

    def power(self) -> None:
        """A base and a number, plain or as Integer(n)."""
        self.terms()
        self.take(",")
        negative = self.sign() == "-"
        self.at += negative
        wrapped = self.at < len(self.tokens) and self.tokens[self.at][2] in ("Integer", "Float")
        if wrapped:
            self.at += 1
            self.take("(")
            self.at += self.sign() == "-"
        if self.number() > MOST_POWER:
            raise ValueError
        if wrapped:
            self.take(")")

    def arguments(self) -> None:
        while self.sign() != ")":
            if self.at + 1 < len(self.tokens) and self.tokens[self.at][2] and self.tokens[self.at + 1][3] == "=":
                self.at += 2
            self.terms()
            if self.sign() != ",":
                return
            self.at += 1

    def number(self) -> float:
        text = self.tokens[self.at][0] if self.at < len(self.tokens) else None
        if text is None or len(re.sub(r"\..*|e.*", "", text)) > MOST_DIGITS:
            raise ValueError
        self.at += 1
        return float(text)
