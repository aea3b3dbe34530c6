"""What speculation gains where the answer repeats the prompt, and what it costs where it does not."""

from edgellm.apps.engine_bench.bench import Answer, Bench, Figure, answer, chat_prompt, in_turn, params, ratio
from edgellm.apps.engine_bench.texts import FREE, REPEATING
from edgellm.engine.speculate import SessionTexts

REPEATING_TOKENS, FREE_TOKENS, RANDOM_PROMPT = 96, 128, 128
RANDOM_PROMPTS = 2
TEMPERATURE, SEED = 0.8, 1
# Of comparing a text, for every repeat asked for: pairs of short answers differ by 5 %, and the worst of ten is wanted
LEAST_SECONDS = 6.0


def speculation_repeat_speedup(bench: Bench) -> Figure:
    """The median over all texts and repeats."""
    found = {name: _compare(bench, bench.model.tokenize(text), REPEATING_TOKENS) for name, text in REPEATING.items()}
    above = [speed for figure in found.values() for speed in figure.details["above"]]
    below = [speed for figure in found.values() for speed in figure.details["below"]]
    return ratio(above, below, **_by_text(found))


def speculation_free_ratio(bench: Bench) -> Figure:
    """The least of the texts' medians."""
    prompts = {text: chat_prompt(bench.model, text) for text in FREE}
    found = {}
    for text, prompt in prompts.items():
        found[text] = _compare(bench, prompt, FREE_TOKENS)
        found[f"{text} (temperature {TEMPERATURE})"] = _compare(
            bench, prompt, FREE_TOKENS, temperature=TEMPERATURE, seed=SEED
        )
    for number in range(1, RANDOM_PROMPTS + 1):
        found[f"random tokens {number}"] = _compare(bench, bench.prompt(RANDOM_PROMPT), FREE_TOKENS)
    worst = min(found.values(), key=lambda figure: figure.value)
    return Figure(worst.value, worst.values, _by_text(found))


def _compare(bench: Bench, prompt: list[int], count: int, **sampling: float) -> Figure:
    """Decode speed of the same answer with speculation "auto" against "off"."""

    def answer_with(speculation: str) -> Answer:
        # Of the answer before, which is the same, nothing may be known
        bench.model._input.session = SessionTexts()
        return answer(bench.model, prompt, params(bench.model, count, speculation=speculation, **sampling))

    pair_seconds = 2 * answer_with("off").further_seconds
    repeat = max(bench.repeat, int(bench.repeat * LEAST_SECONDS / pair_seconds))
    auto, off = in_turn(repeat, lambda: answer_with("auto"), lambda: answer_with("off"))
    usage = auto[-1].usage
    return ratio(
        [one.decode_tokens_per_second for one in auto],
        [one.decode_tokens_per_second for one in off],
        equal=all(one.ids == auto[0].ids for one in [*auto, *off]),
        num_drafted_tokens=usage.num_drafted_tokens,
        num_accepted_tokens=usage.num_accepted_tokens,
    )


def _by_text(found: dict[str, Figure]) -> dict[str, object]:
    texts = {name: {"value": figure.value, "values": figure.values, **figure.details} for name, figure in found.items()}
    return {"equal": all(text["equal"] for text in texts.values()), "texts": texts, "unit": "tokens per second"}
