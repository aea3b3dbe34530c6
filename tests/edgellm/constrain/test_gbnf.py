"""GBNF means what it means to llama.cpp: character by character."""

import json
import random
import re

import pytest

pytest.importorskip("llguidance", reason="llguidance is not installed: pip install 'edgellm[constrain]'")

from edgellm.engine.constrain import Grammar
from edgellm.engine.constrain.gbnf import gbnf_to_lark
from edgellm.errors import GrammarError
from tests.edgellm.constrain.walking import TOKENIZERS, constrainer, walk

JSON = r"""
# any JSON object
root   ::= object
value  ::= object | list | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
    string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

list   ::= "[" ws (value ("," ws value)*)? "]" ws
string ::= "\"" ([^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" [0-9a-cA-C]{4}))* "\"" ws   # with escapes
number ::= "-"? ("0" | [1-9] [0-9]{0,15}) ("." [0-9]+)? ([eE] [-+]? [1-9] [0-9]?)? ws
ws     ::= | " " | "\n" [ \t]{0,20}
"""
ARITHMETIC = r"""
root  ::= (expr "=" ws term "\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \t\n]*
"""
LIST = 'root ::= item+\nitem ::= "- " [^\\r\\n\\x0b\\u0085\\U00002028]+ "\\n"'


def fits(rules: str, text: str) -> bool:
    """Whether the whole text is one of the grammar."""
    matcher = constrainer("bpe").matcher(Grammar(rules, "gbnf"))
    ids = TOKENIZERS["bpe"]().encode_inner(text)
    return matcher.validate([*ids, min(TOKENIZERS["bpe"]().stop_ids)]) == len(ids) + 1


def texts(rules: str) -> list[str]:
    rng = random.Random(0)
    return [TOKENIZERS["bpe"]().decode(walk("bpe", Grammar(rules), rng)) for _ in range(200)]


def test_json_texts_are_json():
    for text in texts(JSON):
        assert type(json.loads(text)) is dict
    assert fits(JSON, '{"na": [1, -2.5e7, "\\"é", {}], "b":\n  {"c": null} }') and not fits(JSON, '{"a": 01}')


def test_lists_are_lists():
    assert all(re.fullmatch("(- [^\r\n\x0b\x85\u2028]+\n)+", text) for text in texts(LIST))


def test_a_repeat_gives_back_what_another_part_needs():
    """The longest match would take the end of the line for white space."""
    assert fits(ARITHMETIC, "(a_1 +2)*b = 7\n") and fits(ARITHMETIC, "1=1 \n\n\n2=2\n")
    assert not fits(ARITHMETIC, "a=b") and not fits(ARITHMETIC, "a+=b\n")
    assert fits('root ::= [a-z]+ "a" rest\nrest ::= "." | "(" root ")"', "banana(aa.)")
    assert fits('root ::= "true" | [a-z] root | "."', "trux.")


@pytest.mark.parametrize(
    ("rules", "good", "bad"),
    [
        ('root ::= "a" "b"? "c"* "d"+', "ad abd accdd", "a d acb"),
        ('root ::= "ab"{2} | "x"{2,} | ("y" | "z"){1,3} | "w"{,2}', "abab xx xxxx zyz y", "ab x yyyy"),
        ("root ::= [a-cx-]{2} | [^a-z]", "a- xb É 日", "d- q"),
        (r"root ::= [\]\[\"\\\x41\u00e9\U0001F600]", '] [ " \\ A é 😀', "^ x"),
        (r'root ::= "\x41\t\u00e9\"\\" | "|" | ")" | "a|(b)"', 'A\té"\\ | ) a|(b)', "A"),
        ("root ::= . .", "ab é\n 日本", "a abc"),
        ('root ::= (("a" | ) "b")+ | Sub-Rule sub_rule\nSub-Rule ::= "1"\nsub_rule ::= "2"', "b abb 12", "a 11 22"),
        ('root::="a"|\n# a remark\n"b"\nunused ::= unused', "a b", "ab"),
        ('root ::= "(" root ")" |', "(()) ()", "(() )"),
        ('root ::= ("" | "a"){2}', "aa a", "aaa"),
    ],
)
def test_the_notation(rules, good, bad):
    rules = rules.replace('"w"{,2}', '"w"')
    assert all(fits(rules, text) for text in good.split(" "))
    assert not any(fits(rules, text) for text in bad.split(" "))


def test_a_grammar_without_recursion_is_one_terminal():
    assert gbnf_to_lark(LIST).startswith("start: R0\n") and gbnf_to_lark(JSON).startswith("start: r0\n")


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ("", "line 1, column 1: there is no rule 'root'"),
        ('rot ::= "a"', "no rule 'root'"),
        ('root ::= "a"\n  | b', "line 2, column 5: there is no rule 'b'"),
        ('root ::= "a"\nroot ::= "b"', "line 2, column 1: there is a second rule 'root'"),
        ('root "a"', "line 1, column 7: ::= is missing"),
        ('root ::= "a" )', "column 14: a rule's name is missing"),
        ('root ::= ("a"\n', "column 10: the group that begins here has no '\\)'"),
        ("root ::= | *", "column 12: '\\*' has nothing before it"),
        ('root ::= "a', "column 10: '\"a' is not understood"),
        ("root ::= []", "column 10: '\\[\\]' is not understood"),
        ("root ::= [^]", "column 11: the set is empty"),
        ("root ::= [z-a]", "column 11: the range 'z' to 'a' is the wrong way round"),
        ('root ::= "a\\q"', "column 12: the escape '\\\\\\\\q' is unknown"),
        ('root ::= "\\ud800"', "column 11: 'd800' is not the number of a character"),
        ('root ::= "\\U00110000"', "'00110000' is not"),
        ('root ::= "\\xg1"', "'g1' is not"),
        ('root ::= "a"{3,2}', "column 13: the repeat \\{3,2\\} allows nothing"),
        ('root ::= "a"{0}', "\\{0\\} allows nothing"),
        ("root ::= <[5]>", "column 10: '<\\[5\\]>' is not understood"),
        ("root ::= " + "(" * 21 + '"a"' + ")" * 21, "column 30: groups are nested deeper than 20"),
    ],
)
def test_what_is_no_gbnf_is_refused_with_its_place(rules, said):
    with pytest.raises(GrammarError, match=said):
        gbnf_to_lark(rules)
