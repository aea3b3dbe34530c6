"""Texts to replay, as token ids: a word, a space or a mark is a token."""

import random
import re

PROSE = """
The lighthouse stands on a rock that the tide covers twice a day, and for most of its life nobody could reach
it between October and April. Keepers went out in autumn with flour, lamp oil, a barrel of salted herring and
whatever books the parish would lend, knowing that they would not see another face until the swallows came
back. One of them, a widower named Harald, taught himself Portuguese from a grammar that had lost its first
forty pages. He never learned how to greet anybody, but he could describe the subjunctive with great
precision. When a brig from Lisbon was wrecked in the winter of 1871 he addressed eleven shivering sailors
with a conditional sentence about orchards, and was astonished when they wept.

Light was made by burning rapeseed oil in four rings of wick. It had to be trimmed every three hours, the
lenses wiped with spirit of wine, the clockwork wound by hand. A full turn took ninety seconds; if the weights
stuck, somebody pushed the whole apparatus round with his shoulder till morning. Fog was worse than storm.
Then a bell was rung, one stroke each half minute, and since there was no machine for that either, whoever was
off watch sat underneath with a rope and counted. Men who had done it for years said that afterwards silence
itself seemed to have a pulse.

Paraffin came, later electricity, finally an engineer with a grey suitcase who installed a sensor no bigger
than a teacup. He needed an afternoon. Before leaving he climbed up to look at the old optic, eight hundred
kilograms of cut glass floating in a bath of mercury, and found that a child could still set it moving with
one finger. Nothing so heavy, he wrote in his report, ought to be so easily persuaded. His superiors removed
that line.

Today visitors arrive by rubber boat, eat sandwiches on the landing, photograph gulls. Few notice the marks
beside the kitchen door, where generations of children measured themselves against the frame during their
single fortnight of summer holidays: names, dates, a pencil stroke, growth recorded in jumps as if each had
spent eleven months asleep. The lowest line belongs to Ingrid, three years old, July 1909. Next to it, in
another hand and much fainter ink, someone has added a question which no historian has managed to explain:
"Did you bring the goat?"
"""

CODE = """
class Account:
    def __init__(self, owner, balance=0):
        self.owner = owner
        self.balance = balance
        self.history = []

    def deposit(self, amount):
        if amount <= 0:
            raise ValueError(f"cannot deposit {amount}, give a positive amount")
        self.balance += amount
        self.history.append(("deposit", amount))

    def withdraw(self, amount):
        if amount <= 0:
            raise ValueError(f"cannot withdraw {amount}, give a positive amount")
        if amount > self.balance:
            raise ValueError(f"cannot withdraw {amount}, the balance is {self.balance}")
        self.balance -= amount
        self.history.append(("withdraw", amount))

    def transfer(self, other, amount):
        self.withdraw(amount)
        other.deposit(amount)
        self.history.append(("transfer", amount))

    def statement(self):
        lines = [f"Statement of {self.owner}"]
        for kind, amount in self.history:
            lines.append(f"{kind:10} {amount:10}")
        lines.append(f"{'balance':10} {self.balance:10}")
        return lines
"""

_ids: dict[str, int] = {}


def tokens(text: str) -> list[int]:
    return [_ids.setdefault(piece, len(_ids)) for piece in re.findall(r"\w+|\s+|[^\w\s]", text)]


def edited(text: list[int], share: float, seed: int = 0) -> list[int]:
    """A copy with a share of the tokens replaced, left out or doubled."""
    draw = random.Random(seed)
    copy: list[int] = []
    for token in text:
        if draw.random() >= share:
            copy.append(token)
        elif (kind := draw.randrange(3)) < 2:
            copy += [token, draw.choice(text)] if kind else [draw.choice(text)]
    return copy


def random_tokens(count: int, vocabulary: int, seed: int = 0) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(vocabulary) for _ in range(count)]


def diverging(source: list[int], count: int, length: int, seed: int = 0) -> list[int]:
    """Pieces of `length` tokens of the source, each followed by a token that never came there."""
    draw = random.Random(seed)
    text: list[int] = []
    while len(text) < count:
        place = draw.randrange(len(source) - length)
        text += [*source[place : place + length], 1_000_000 + len(text)]
    return text
