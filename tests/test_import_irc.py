"""`tidings import irc`: what lines mean, where they go, and that importing again adds nothing."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.command_line import run_tidings
from tidings.clock import rfc3339
from tidings.ids import is_id
from tidings.importing.irc import HelpDesk, Target
from tidings.importing.irclogs import (
    LINE_BYTES_MAX,
    ClientIds,
    Line,
    Moved,
    Odd,
    Spoken,
    name_id,
    parse_line,
    read_log,
)

SHARED_LOGS = Path(__file__).parents[2] / "shared" / "data" / "irc"


@pytest.mark.parametrize(
    ("raw", "nick", "text", "at"),
    [
        ("shop 2019-09-04 [22:44:46] <ann> hello ", "ann", "hello", "2019-09-04T22:44:46.000Z"),
        ("shop 2019-09-04 [22:44:46] <ann>\t hello  ", "ann", "hello", "2019-09-04T22:44:46.000Z"),
        ("#shop 2019-09-04 [22:44] <@ann> hello", "ann", "hello", "2019-09-04T22:44:00.000Z"),
        ("shop 2019-09-04 <+ann> <b> 1 > 0", "ann", "<b> 1 > 0", "2019-09-04T00:00:00.000Z"),
        (
            "shop 2020-02-29 [00:00:00] * ann waves",
            "ann",
            "* ann waves",
            "2020-02-29T00:00:00.000Z",
        ),
        (
            "shop 2020-02-29 [00:00:00] *ann \twaves",
            "ann",
            "* ann waves",
            "2020-02-29T00:00:00.000Z",
        ),
        ("shop 2019-09-04 [22:44:46] <a|b> \x0304red\x03 \x02bold\x0f", "a|b", "red bold", None),
        ("shop 2019-09-04 [22:44:46] <ann> * ann has quit", "ann", "* ann has quit", None),
    ],
)
def test_what_somebody_said(raw: str, nick: str, text: str, at: str | None) -> None:
    line = parse_line(raw)
    assert isinstance(line, Spoken)
    assert (line.channel, line.nick, line.text) == ("shop", nick, text)
    if at is not None:
        assert rfc3339(line.at) == at


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        ("", Odd("blank line")),
        ("   \t", Odd("blank line")),
        ("hello", Odd("does not start with a channel and a date")),
        ("shop yesterday [10:00:00] <ann> hi", Odd("does not start with a channel and a date")),
        ("shop 2019-02-30 [10:00:00] <ann> hi", Odd("no such date or time")),
        ("shop 2019-02-20 [24:01:00] <ann> hi", Odd("no such date or time")),
        ("shop 2019-02-20 [10:00:00]", Odd("nothing after the time")),
        ("shop 2019-02-20 [10:00:00] hi", Odd("no nick after the time")),
        ("shop 2019-02-20 [10:00:00] <ann b> hi", Odd("no nick after the time")),
        ("shop 2019-02-20 [10:00:00] <> hi", Odd("no nick after the time")),
        ("shop 2019-02-20 [10:00:00] <ann>  ", Odd("a nick without a text")),
        (f"shop 2019-02-20 <ann> {'x' * 8001}", Odd("a text of more than 8,000 characters")),
        ("shop 2019-02-20 [10:00:00] *** ann has joined #shop", Moved("join")),
        ("shop 2019-02-20 [10:00:00] ann [~a@host] has joined #shop", Moved("join")),
        ("shop 2019-02-20 [10:00:00] --> ann (~a@host) has joined #shop", Moved("join")),
        ("shop 2019-02-20 [10:00:00] * ann (~a@host) has joined #shop", Moved("join")),
        ("shop 2019-02-20 [10:00:00] * Joins: ann (~a@host)", Moved("join")),
        ("shop 2019-02-20 [10:00:00] -!- ann [~a@host] has quit [Ping timeout]", Moved("leave")),
        ("shop 2019-02-20 [10:00:00] * ann has left #shop", Moved("leave")),
        ("shop 2019-02-20 [10:00:00] * ann is now known as ann_away", Moved("rename")),
        ("shop 2019-02-20 [10:00:00] === mode/#shop [+o ann] by ops", Moved("notice")),
    ],
)
def test_what_is_no_message(raw: str, line: Line) -> None:
    assert parse_line(raw) == line


@given(st.text())
def test_any_text_is_some_line(raw: str) -> None:
    parse_line(raw)
    parse_line(f"shop 2019-09-04 [22:44:46] {raw}")


def test_bytes_that_are_not_utf_8_are_read_as_latin_1(tmp_path: Path) -> None:
    log = tmp_path / "shop.txt"
    log.write_bytes(
        b"\xef\xbb\xbfshop 2019-02-20 <ann> na\xc3\xafve\r\nshop 2019-02-20 <ann> caf\xe9\n"
        b"shop 2019-02-20 <ann> " + b"y" * LINE_BYTES_MAX + b"\nshop 2019-02-20 <bob> last"
    )
    lines = list(read_log(log))
    assert [line.number for line in lines] == [1, 2, 3, 4]
    assert [line.is_latin for line in lines] == [False, True, False, False]
    texts = [line.line.text if isinstance(line.line, Spoken) else line.line for line in lines]
    assert texts == ["naïve", "café", Odd("longer than 65,536 bytes"), "last"]
    assert sum(line.size_bytes for line in lines) == log.stat().st_size


@given(st.sets(st.text(min_size=1, max_size=120), min_size=2, max_size=8))
def test_different_names_have_different_ids(names: set[str]) -> None:
    ids = {name_id(name) for name in names}
    assert len(ids) == len(names)
    assert all(is_id(f"support:{each}") for each in ids)


def test_usual_nicks_are_their_own_ids() -> None:
    assert name_id("w1zeman1p") == "w1zeman1p"
    assert name_id("Aaron|home") == "Aaron.7chome"
    assert name_id("[ops]") == ".5bops.5d"


def _said(second: int, text: str, nick: str = "ann") -> Spoken:
    return Spoken("shop", second * 1000, nick, text)


def test_a_line_has_the_same_client_id_wherever_it_stands() -> None:
    lines = [_said(1, "yes"), _said(1, "yes"), _said(1, "no"), _said(2, "yes"), _said(3, "yes")]

    def ids(of: list[Spoken]) -> list[str]:
        client_ids = ClientIds()
        return [client_ids.of(line) for line in of]

    whole = ids(lines)
    assert len(set(whole)) == len(lines)
    assert ids(lines[3:]) == whole[3:]
    assert ids(lines + lines) == whole + whole
    assert ids([_said(1, "yes", "bob")])[0] not in whole


def _targets(*lines: tuple[int, str, str]) -> list[str | None]:
    nicks = {nick.lower(): nick for _, nick, _ in lines if nick != "eva" and nick != "Max"}
    desk = HelpDesk(frozenset({"Eva", "max"}), nicks)
    found = []
    for minute, nick, text in lines:
        target = desk.target(Spoken("shop", minute * 60_000, nick, text))
        found.append(target.customer if isinstance(target, Target) else None)
    return found


def test_a_line_of_the_team_goes_to_whom_it_speaks_with() -> None:
    conversation = (
        (0, "eva", "morning all", None),
        (1, "Ann", "hello, is anybody there?", "Ann"),
        (2, "eva", "yes!", "Ann"),
        (3, "bob", "my order is late", "bob"),
        (4, "eva", "still with you", "Ann"),
        (5, "Max", "bob: which number?", "bob"),
        (6, "Ann", "it broke", "Ann"),
        (7, "Max", "I'll have a look", "bob"),
        (8, "eva", "@ann, bob: same cause for both of you", "Ann"),
        (9, "bob", "eva: really?", "bob"),
        (10, "eva", "really", "bob"),
        (40, "Ann", "I'm back", "Ann"),
        (41, "eva", "welcome back", "Ann"),
        (42, "Max", "max: talking to myself", "Ann"),
        (43, "eva", "later: nobody of that name", "Ann"),
    )
    lines = [(minute, nick, text) for minute, nick, text, _ in conversation]
    assert _targets(*lines) == [room for *_, room in conversation]


LOG = """\
shop 2019-02-20 [10:00:00] *** ann has joined #shop
shop 2019-02-20 [10:00:01] <ann> hello
shop 2019-02-20 [10:00:02] <ann> hello
shop 2019-02-20 [10:00:02] <ann> hello
shop 2019-02-20 [10:00:30] <eva> ann: hi, what is it?
nonsense
shop 2019-02-20 [10:01:00] <b|ob> me too
shop 2019-02-20 [10:01:10] <eva> b|ob: one moment
shop 2019-02-20 [10:01:20] * eva looks it up
"""


def _import(store: Path, *arguments: str) -> dict[str, object]:
    url = f"sqlite:///{store}"
    outcome = run_tidings("import", "irc", "--json", "--store", url, *arguments)
    assert outcome.code == 0, outcome.errors
    report = json.loads(outcome.output)
    assert isinstance(report, dict)
    return report


def _counts(report: dict[str, object]) -> tuple[object, ...]:
    names = ("entries_added", "entries_present", "users_made", "rooms_made", "members_joined")
    return tuple(report[name] for name in names)


def _room(store: Path, room_id: str) -> tuple[dict[str, object], list[str]]:
    outcome = run_tidings("rooms", "show", room_id, "--store", f"sqlite:///{store}")
    assert outcome.code == 0, outcome.errors
    shown = json.loads(outcome.output)
    return shown["room"], sorted(member["user_id"] for member in shown["members"])


def _audit(store: Path) -> None:
    outcome = run_tidings("audit", "--json", "--store", f"sqlite:///{store}")
    assert outcome.code == 0, outcome.output


def test_a_channel_becomes_a_public_group_once(tmp_path: Path) -> None:
    log, store = tmp_path / "shop.txt", tmp_path / "t.db"
    log.write_text(LOG)
    quarantine = tmp_path / "odd.jsonl"
    first = _import(store, str(log), "--quarantine", str(quarantine))
    assert _counts(first) == (7, 0, 3, 1, 0)
    assert json.loads(quarantine.read_text()) == {
        "kind": "line",
        "key": f"{log}:6",
        "reason": "does not start with a channel and a date",
        "record": {"line": "nonsense"},
    }
    assert first["skipped"] == {"join": 1}
    assert first["odd"] == {"does not start with a channel and a date": 1}
    odd = first["odd_lines"]
    assert isinstance(odd, list)
    assert (odd[0]["number"], odd[0]["excerpt"]) == (6, "nonsense")
    assert _counts(_import(store, str(log))) == (0, 7, 0, 0, 0)
    room, members = _room(store, "shop")
    assert (room["kind"], room["scope"], room["title"], room["head"]) == (
        "group",
        "public",
        "#shop",
        7,
    )
    assert members == ["ann", "b.7cob", "eva"]
    _audit(store)


def test_overlapping_files_add_what_is_new(tmp_path: Path) -> None:
    lines = LOG.splitlines(keepends=True)
    store = tmp_path / "t.db"
    early, late, both = (tmp_path / name for name in ("z-early.txt", "a-late.txt", "both.txt"))
    early.write_text("".join(lines[:5]))
    late.write_text("".join(lines[3:]))
    both.write_text(LOG + LOG)
    assert _counts(_import(store, str(late), str(early)))[:2] == (7, 2)
    assert _counts(_import(store, str(both)))[:2] == (0, 14)
    assert _room(store, "shop")[0]["head"] == 7
    _audit(store)


def test_a_help_desk_becomes_a_room_for_each_customer(tmp_path: Path) -> None:
    log, store = tmp_path / "shop.txt", tmp_path / "t.db"
    log.write_text(LOG)
    arguments = (str(log), "--as", "support", "--team", "eva")
    assert _counts(_import(store, *arguments)) == (7, 0, 3, 2, 0)
    room, members = _room(store, "support:ann")
    assert (room["kind"], room["customer_id"], room["head"]) == ("support", "ann", 4)
    assert members == ["ann", "eva"]
    room, members = _room(store, "support:b.7cob")
    assert (room["customer_id"], room["head"]) == ("b.7cob", 3)
    assert _counts(_import(store, *arguments)) == (0, 7, 0, 0, 0)
    _audit(store)


def test_somebody_elses_id_is_not_taken(tmp_path: Path) -> None:
    log, store = tmp_path / "shop.txt", tmp_path / "t.db"
    log.write_text(LOG)
    url = f"sqlite:///{store}"
    run_tidings("users", "create", "Another Ann", "--id", "ann", "--store", url)
    run_tidings("users", "create", "Eva", "--id", "eva", "--role", "admin", "--store", url)
    report = _import(store, str(log), "--as", "support", "--team", "eva")
    assert (report["users_made"], report["users_present"]) == (2, 1)
    _, members = _room(store, "support:irc:ann")
    assert members == ["eva", "irc:ann"]
    assert _counts(_import(store, str(log), "--as", "support", "--team", "eva"))[0] == 0


def test_a_stored_customer_does_not_become_one_of_the_team(tmp_path: Path) -> None:
    log, store = tmp_path / "shop.txt", tmp_path / "t.db"
    log.write_text(LOG)
    _import(store, str(log), "--as", "support", "--team", "eva")
    url = f"sqlite:///{store}"
    again = ("import", "irc", str(log), "--store", url, "--as", "support", "--team")
    outcome = run_tidings(*again, "ann,eva")
    assert outcome.code == 1
    assert "ann is a customer here" in outcome.errors
    outcome = run_tidings(*again, "nobody")
    assert outcome.code == 1
    assert "eva is a manager here: name them in --team" in outcome.errors


def test_who_comes_in_a_later_file_joins(tmp_path: Path) -> None:
    store = tmp_path / "t.db"
    first, second = tmp_path / "1.txt", tmp_path / "2.txt"
    first.write_text(LOG)
    second.write_text("shop 2019-02-21 [09:00:00] <zoe> good morning\n")
    _import(store, str(first))
    assert _counts(_import(store, str(second))) == (1, 0, 1, 0, 1)
    assert _room(store, "shop")[0]["head"] == 9  # seven, the joining, and zoe's line
    _audit(store)


TEAM = "karllekko,w1zeman1p,hmunoz,koopajah,timebox,jeremyqm,InternetJones"


@pytest.mark.slow
@pytest.mark.skipif(not SHARED_LOGS.is_dir(), reason="the logs are not beside this checkout")
@pytest.mark.parametrize(
    ("channel", "arguments", "lines"),
    [("stripe", ("--as", "support", "--team", TEAM), 3600), ("mediawiki", (), 3599)],
)
def test_real_logs(tmp_path: Path, channel: str, arguments: tuple[str, ...], lines: int) -> None:
    store = tmp_path / "t.db"
    logs = sorted(SHARED_LOGS.glob(f"{channel}.*.txt"))
    assert len(logs) == 3
    report = _import(store, *map(str, logs), *arguments)
    assert report["lines"] == lines
    odd = report["odd"]
    assert isinstance(odd, dict)
    added = report["entries_added"]
    assert added == lines - sum(Counter[str](odd).values())
    assert isinstance(added, int)
    assert added > 0.99 * lines
    _audit(store)
    again = _import(store, *map(str, logs), *arguments)
    assert _counts(again) == (0, added, 0, 0, 0)
    one_by_one = tmp_path / "one.db"
    for log in logs:
        _import(one_by_one, str(log), *arguments)
    assert _counts(_import(one_by_one, *map(str, logs), *arguments))[:2] == (0, added)
    _audit(one_by_one)
