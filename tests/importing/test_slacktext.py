"""What Slack's texts become."""

from __future__ import annotations

import json
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings.importing.slacktext import Words, emoji, plain, text_of_blocks
from tidings.importing.slackzips import Broken, elements

NAMES = {"U1": "Ann", "U2": "Ben"}
CHANNELS = {"C1": "general"}


@pytest.mark.parametrize(
    ("raw", "text", "user_ids"),
    [
        ("plain", "plain", ()),
        ("<@U1> and <@U2|ben>, <@U1>", "@Ann and @Ben, @Ann", ("U1", "U2")),
        ("<@U9> <@U8|old>", "@U9 @old", ("U9", "U8")),
        ("<#C1> <#C9|gone> <#C8>", "#general #gone #C8", ()),
        ("<!here> <!channel|channel> <!everyone>", "@here @channel @everyone", ()),
        ("<!subteam^S1|@designers> <!subteam^S2>", "@designers @subteam", ()),
        ("<!date^1392734382^{date}|Feb 18, 2014> <!date^7^{time}>", "Feb 18, 2014 7", ()),
        ("<http://a.ex> <http://a.ex|here>", "http://a.ex here (http://a.ex)", ()),
        ("<mailto:a@b.cd|a@b.cd> <tel:+1|call>", "a@b.cd call (+1)", ()),
        ("1 &lt; 2 &amp;&amp; 3 &gt; 2 &amp;lt;", "1 < 2 && 3 > 2 &lt;", ()),
        ("&lt;@U1&gt; is no mention", "<@U1> is no mention", ()),
        ("a < b > c <> <\n>", "a  b  c <> <\n>", ()),
        ("*bold* _it_ `code` :smile:", "*bold* _it_ `code` :smile:", ()),
    ],
)  # fmt: skip
def test_entities(raw: str, text: str, user_ids: tuple[str, ...]) -> None:
    assert plain(raw, NAMES.get, CHANNELS.get) == Words(text, user_ids)


@given(st.text(alphabet="<>@#!|^&;ltgam:U1 \nx"))
def test_any_text_is_read(raw: str) -> None:
    plain(raw, NAMES.get, CHANNELS.get)


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("+1", "👍"),
        ("+1::skin-tone-3", "👍🏼"),
        ("party_parrot", ":party_parrot:"),
        ("x" * 40, None),
        ("a#b", None),
        ("", None),
    ],
)
def test_emoji(name: str, written: str | None) -> None:
    assert emoji(name) == written


def test_the_words_in_blocks() -> None:
    section = {"type": "section", "text": {"type": "mrkdwn", "text": "Build 7"}}
    fields = {"type": "section", "fields": [{"type": "mrkdwn", "text": "ok"}]}
    assert text_of_blocks([section, fields]) == "Build 7\nok"
    deep: object = {"text": "too deep"}
    for _ in range(50):
        deep = [deep]
    assert text_of_blocks(deep) == ""


@given(
    st.lists(st.dictionaries(st.text(), st.text() | st.integers() | st.none(), max_size=3)),
    st.integers(0, 4),
)
def test_lists_are_read_element_by_element(given_: list[object], indent: int) -> None:
    text = json.dumps(given_, indent=indent or None, ensure_ascii=False)
    whole = text.encode("utf-8", "surrogatepass")
    assert list(elements(BytesIO(whole))) == json.loads(whole.decode("utf-8", "surrogateescape"))
    for cut in {1, len(whole) // 2, len(whole) - 1}:
        with pytest.raises(Broken):
            list(elements(BytesIO(whole[:cut])))
