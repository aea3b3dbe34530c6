"""Prompts for measuring speculation: some whose answer repeats the prompt, and some whose answer is free.

Those that repeat end where the answer has begun, so that a model too small to follow an instruction goes on alike.
"""

_STORY = """\
On a Monday in March the ferry did not leave. Tom Keller, who had sold tickets at the quay for eleven years, put a \
sign in the window and walked to the engine room, where the mechanic was drinking tea and looking at a broken pump. \
Nobody knew where to find another one. The spare parts had been sold with the old boat, and the factory in the \
valley had closed. So Tom Keller called his sister, who restored tractors, and read her the numbers on the brass \
plate. She laughed, asked him to read them again, and said that the same pump was lying in her barn under a blanket. \
By the evening she had driven across the pass with the pump on the back seat, and the ferry left at nine with all \
its lights on, three hours late and full of people who had decided to stay together until it did."""

_CODE = """\
class Shelf:
    def __init__(self, xs, limit):
        self.xs = list(xs)
        self.limit = limit

    def add(self, x):
        if len(self.xs) >= self.limit:
            raise ValueError("the shelf is full")
        self.xs.append(x)

    def remove(self, name):
        for index, x in enumerate(self.xs):
            if x.name == name:
                del self.xs[index]
                return x
        raise KeyError(name)

    def total(self):
        t = 0
        for x in self.xs:
            if x.ok:
                t += x.price * x.count
        return t
"""

_NOTES = """\
[13:05] Mrs. Lang asked for a cake with cherries for her mother, who will be ninety on Sunday.
[13:20] The blue van does not start in the cold; the garage can look at it on Thursday morning.
[13:50] Order of 60 pretzels and 30 rye loaves for the choir, to be fetched on Saturday before noon.
[14:30] The new apprentice has a driving licence and would like to do the early tour in the valley.
[15:00] The price of butter goes up by eight percent next month, says the dairy in its letter of today."""

_EDITED = _STORY.replace("Tom", "Anna")
_REFACTORED = _CODE.replace("xs", "items")
_LIST = _NOTES.replace("[", "- [")

REPEATING = {
    "edit this text": (
        f"{_STORY}\n\nThe same text, but with Anna in place of Tom:\n\n{_EDITED[: _EDITED.index(' window and')]}"
    ),
    "extract": (
        f"Notes of the day:\n{_NOTES}\n\nA list of all notes of the day, word by word:\n"
        f"{_LIST[: _LIST.index(' for a cake')]}"
    ),
    "refactor code": (
        f"```python\n{_CODE}```\n\nThe same code with `items` instead of `xs`:\n\n"
        f"```python\n{_REFACTORED[: _REFACTORED.index('(items)')]}"
    ),
}

FREE = [
    "Tell me a story about a lighthouse keeper who finds a letter.",
    "How does a bicycle stay upright? Explain it to a curious child.",
    "What should I think about before I move to another city?",
    "Write a short dialogue between a cook and a guest who never says what he wants.",
]
