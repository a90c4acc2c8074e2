"""The command line: what scripts rely on, how it fails, and the commands beside a service."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import typer

from tests.command_line import Outcome, lasting_port, run_tidings, running_service
from tidings.cli import app
from tidings.demo_story import PEOPLE, SCENES
from tidings.storage.prices import latest_prices

REVOCATION_S = 5.0
STOP_S = 10.0


def _ok(*arguments: str, environment: dict[str, str] | None = None) -> Outcome:
    outcome = run_tidings(*arguments, environment=environment)
    assert outcome.code == 0, outcome.errors
    return outcome


def _call(url: str, token: str, body: object = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data)
    request.add_header("Authorization", f"Bearer {token}")
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'tidings.db'}"


# --- usage ---------------------------------------------------------------------------------------


def _commands(command: Any, path: str = "tidings") -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from _commands(below, f"{path} {name}")


def test_every_option_and_command_has_help() -> None:
    paths = []
    for path, command in _commands(typer.main.get_command(app)):
        paths.append(path)
        assert command.help, path
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert parameter.help, f"{path} {parameter.opts}"
    assert {f"tidings {name}" for name in ("serve", "demo", "audit", "explain", "cost")} < set(
        paths
    )


def test_every_option_is_read_from_the_environment(store: str) -> None:
    environment = {"TIDINGS_STORE": store, "TIDINGS_WORKSPACE": "acme", "TIDINGS_ROLE": "manager"}
    user_id = _ok("users", "create", "Ann", environment=environment).last_line
    shown = _ok("users", "show", user_id, environment=environment)
    assert json.loads(shown.output)["role"] == "manager"
    assert "TIDINGS_STORE" in _ok("audit", "--help").output


def test_version() -> None:
    assert _ok("--version").output.startswith("tidings ")


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (("nonsense",), 2, "nonsense"),
        (("audit", "--nonsense"), 2, "--nonsense"),
        (("explain", "ann"), 2, "ROOM"),
        (("keys",), 2, "ommand"),
        (("serve", "--port", "70000"), 2, "port"),
        (("serve", "--store", "mysql://elsewhere"), 2, "mysql"),
        (("serve", "--bus", "amqp://127.0.0.1"), 2, "amqp"),
        (("serve", "--rate-limit", "many"), 2, "rate_limit"),
        (("serve", "--faults", "wild"), 2, "mild"),
        (("keys", "create", "--scopes", "everything", "--store", "{}"), 2, "--scopes"),
        (("users", "create", "Ann", "--role", "king", "--store", "{}"), 2, "king"),
        (("import", "irc", "missing.txt", "--store", "{}"), 2, "missing.txt"),
        (("import", "irc", __file__, "--as", "support", "--store", "{}"), 2, "--team"),
        (("audit", "--store", "{}"), 1, "no store"),
        (("users", "list", "--store", "{}"), 1, "no store"),
        (("audit", "--store", "sqlite:////dev/null"), 1, "store"),
        (("keys", "create", "--store", "sqlite:////proc/nowhere/t.db"), 1, "nowhere"),
    ],
)
def test_an_error_is_one_line(store: str, arguments: tuple[str, ...], code: int, part: str) -> None:
    outcome = run_tidings(*(store if each == "{}" else each for each in arguments))
    assert (outcome.code, outcome.output) == (code, "")
    assert part in outcome.errors
    assert len(outcome.errors.splitlines()) == 1
    assert outcome.errors.startswith("tidings: ")


def test_a_user_or_room_that_is_missing(store: str) -> None:
    _ok("keys", "create", "--store", store)
    for arguments in (("users", "show", "ann"), ("rooms", "show", "r"), ("explain", "ann", "r")):
        outcome = run_tidings(*arguments, "--store", store)
        assert (outcome.code, len(outcome.errors.splitlines())) == (1, 1), outcome.errors


def test_several_workspaces_must_be_told_apart(store: str) -> None:
    for name in ("acme", "globex"):
        _ok("users", "create", "Ann", "--id", "ann", "--workspace", name, "--store", store)
    outcome = run_tidings("users", "list", "--store", store)
    assert outcome.code == 1
    assert "--workspace" in outcome.errors
    _ok("users", "list", "--workspace", "acme", "--store", store)
    assert run_tidings("users", "list", "--workspace", "other", "--store", store).code == 1


# --- administration ------------------------------------------------------------------------------


def test_a_key_stands_alone_on_the_last_line(store: str) -> None:
    outcome = _ok("keys", "create", "--store", store)
    assert outcome.last_line.startswith("tk_")
    assert outcome.last_line == outcome.output.strip()
    key = _ok("keys", "create", "--store", store, "--workspace", "acme", "--operator").last_line
    assert key.startswith("tk_")


def test_keys_are_listed_and_revoked(store: str) -> None:
    key = _ok("keys", "create", "--store", store, "--name", "shop", "--scopes", "users,rooms")
    listed = _ok("keys", "list", "--json", "--store", store)
    assert key.last_line not in listed.output
    (shown,) = json.loads(listed.output)
    assert (shown["name"], sorted(shown["scopes"])) == ("shop", ["rooms", "users"])
    assert shown["key_id"] in _ok("keys", "list", "--store", store).output
    _ok("keys", "revoke", shown["key_id"], "--store", store)
    assert json.loads(_ok("keys", "list", "--json", "--store", store).output) == []
    assert run_tidings("keys", "revoke", shown["key_id"], "--store", store).code == 1


def test_users(store: str) -> None:
    create = ("users", "create", "--store", store)
    assert _ok(*create, "Ann Lee", "--id", "ann", "--role", "manager").last_line == "ann"
    made = _ok(*create, "Ben", "--email", "ben@example.com", "--json")
    assert json.loads(made.output)["role"] == "customer"
    assert "already" in _ok(*create, "Somebody else", "--id", "ann").errors
    found = json.loads(_ok("users", "list", "--json", "--store", store).output)
    assert sorted(user["name"] for user in found) == ["Ann Lee", "Ben"]
    found = json.loads(_ok("users", "list", "--search", "ann", "--json", "--store", store).output)
    assert [user["id"] for user in found] == ["ann"]
    found = json.loads(_ok("users", "list", "--role", "bot", "--json", "--store", store).output)
    assert found == []
    _ok("users", "deactivate", "ann", "--store", store)
    assert json.loads(_ok("users", "show", "ann", "--store", store).output)["is_deactivated"]


def test_rooms(store: str) -> None:
    for user, role in (("ann", "customer"), ("eva", "manager")):
        _ok("users", "create", user, "--id", user, "--role", role, "--store", store)
    create = ("rooms", "create", "--store", store)
    named = (*create, "support", "--id", "help", "--members", "ann, eva", "--title", "Help")
    assert _ok(*named).last_line == "help"
    assert "already" in _ok(*named).errors
    shown = json.loads(_ok("rooms", "show", "help", "--store", store).output)
    assert (shown["room"]["kind"], shown["room"]["head"]) == ("support", 0)
    assert sorted(member["user_id"] for member in shown["members"]) == ["ann", "eva"]
    listed = json.loads(_ok("rooms", "list", "--json", "--store", store).output)
    assert [room["id"] for room in listed] == ["help"]
    assert "Help" in _ok("rooms", "list", "--store", store).output
    assert run_tidings(*create, "cave").code == 2


# --- a service -----------------------------------------------------------------------------------


def test_the_commands_work_beside_a_service(store: str) -> None:
    before = _ok("keys", "create", "--store", store).last_line
    with running_service(store) as service:
        users = f"{service.url}/v1/users"
        assert _call(users, before, {"id": "ann", "role": "customer", "name": "Ann"})[0] == 201
        beside = _ok("keys", "create", "--store", store, "--name", "beside").last_line
        assert _call(users, beside, {"id": "eva", "role": "manager", "name": "Eva"})[0] == 201
        _ok("rooms", "create", "support", "--id", "help", "--members", "ann,eva", "--store", store)
        message = {"client_id": "1", "as_user": "ann", "text": "Hello"}
        status, entry = _call(f"{service.url}/v1/rooms/help/messages", beside, message)
        assert (status, entry["seq"]) == (201, 1)
        explained = json.loads(_ok("explain", "eva", "help", "--store", store).output)
        assert "Hello" in json.dumps(explained)
        audited = json.loads(_ok("audit", "--json", "--store", store).output)
        assert (audited["ok"], audited["broken"]) == (True, [])
        assert all(isinstance(count, int) for count in audited["checked"].values())
        listed = json.loads(_ok("keys", "list", "--json", "--store", store).output)
        (key_id,) = [key["key_id"] for key in listed if key["name"] == "beside"]
        _ok("keys", "revoke", key_id, "--store", store)
        deadline = time.monotonic() + REVOCATION_S
        while _call(users, beside)[0] != 401:
            assert time.monotonic() < deadline, "the revoked key is still accepted"
            time.sleep(0.1)
        assert _call(users, before)[0] == 200


def test_a_service_says_where_it_listens_and_stops_when_told(store: str) -> None:
    with running_service(store) as service:
        assert service.url.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(f"{service.url}/healthz", timeout=5) as reply:
            assert reply.status == 200
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(STOP_S) == 0


def test_a_busy_port_is_one_line(store: str) -> None:
    with running_service(store) as service:
        port = service.url.rsplit(":", 1)[1]
        outcome = run_tidings("serve", "--store", f"{store}-2", "--port", port)
    assert outcome.code == 1
    assert len(outcome.errors.splitlines()) == 1
    assert port in outcome.errors


# --- audit ---------------------------------------------------------------------------------------


@pytest.fixture
def talk(store: str, tmp_path: Path) -> Path:
    """The file of a store with one imported conversation."""
    log = tmp_path / "talk.txt"
    log.write_text(
        "".join(
            f"shop 2019-02-20 [10:00:0{n}] <{'ann' if n % 2 else 'ben'}> {n}\n" for n in range(8)
        )
    )
    _ok("import", "irc", str(log), "--store", store)
    return tmp_path / "tidings.db"


def test_audit_finds_a_wrong_count_and_mends_it(store: str, talk: Path) -> None:
    assert "every invariant holds" in _ok("audit", "--store", store).errors
    with closing(sqlite3.connect(talk)) as connection, connection:
        connection.execute("UPDATE inboxes SET unread = unread + 3 WHERE user LIKE '%#ann'")
    outcome = run_tidings("audit", "--json", "--store", store)
    assert outcome.code == 1
    report = json.loads(outcome.output)
    assert report["ok"] is False
    assert all("invariant" in broken for broken in report["broken"])
    assert run_tidings("audit", "--store", store).code == 1
    run_tidings("audit", "--repair", "--store", store)
    assert _ok("audit", "--store", store).code == 0


def test_nothing_of_a_progress_bar_where_nobody_looks(store: str, talk: Path) -> None:
    outcome = _ok("audit", "--store", store)
    assert "\x1b" not in outcome.output + outcome.errors
    assert "%" not in outcome.errors


def test_explain_lists_the_entries_behind_a_badge(store: str, talk: Path) -> None:
    explained = json.loads(_ok("explain", "ann", "shop", "--store", store).output)
    texts = [entry.get("text") for entry in explained["entries"]]
    assert texts == ["0", "2", "4", "6"]


# --- cost ----------------------------------------------------------------------------------------


def test_costs_are_measured() -> None:
    report = json.loads(_ok("cost", "--json").output)
    costs = {each["operation"]: each for each in report["costs"]}
    post = costs["post to a room of 2"]
    assert post["write_units"] >= 2 * 7  # seven items, each doubled by the transaction
    assert costs["post to a room of 10"]["write_units"] > post["write_units"]
    assert (
        0 < costs["the same post again"]["write_units"] < post["write_units"]
    )  # refused ones cost
    assert costs["mark as read again"]["write_units"] == 0
    assert costs["a badge"]["write_units"] == 0
    assert costs["a badge"]["read_units"] <= 1
    assert costs["post to a room of 100, badges and all"]["write_units"] > 2 * 2 * 99


def test_prices_have_a_date() -> None:
    prices = latest_prices()
    assert prices.as_of.year >= 2025
    expected = 2 * prices.read_units_per_million + 4 * prices.write_units_per_million
    assert prices.of_units(2_000_000, 4_000_000) == pytest.approx(expected)


def _bill(*arguments: str) -> dict[str, dict[str, float]]:
    report = json.loads(
        _ok("cost", "--messages-per-month", "10000000", "--json", *arguments).output
    )
    return {line["what"].split()[-1]: line for line in report["bill"]}


@pytest.mark.slow
def test_the_bill_of_a_month() -> None:
    bill = _bill("--storage-gb", "125")
    assert bill["2"]["times"] == 10_000_000
    assert bill["2"]["write_units"] < bill["2"]["write_units_doubled"]
    assert bill["2"]["price"] == pytest.approx(bill["2"]["write_units"] * 0.625 / 1_000_000)
    assert bill["stored"]["price"] == pytest.approx(25)
    lines = [bill[name] for name in ("2", "mark", "app", "stored")]
    for column in ("read_units", "write_units_doubled", "price", "price_doubled"):
        assert bill["together"][column] == pytest.approx(sum(line[column] for line in lines))
    quiet = _bill("--reads-per-message", "0", "--openings-per-message", "0")
    assert quiet["mark"]["price"] == quiet["app"]["price"] == 0
    steady = _bill("--provisioned", "2")
    assert steady["2"]["write_units"] == bill["2"]["write_units"]
    per_s = bill["2"]["write_units"] / (730 * 3_600)
    assert steady["2"]["price"] == pytest.approx(2 * per_s * 730 * 0.00065)


def test_the_bill_of_a_large_room_has_what_follows() -> None:
    assert _bill("--members", "50")["50"]["write_units"] > 10_000_000 * 50 * 6


# --- demo ----------------------------------------------------------------------------------------


def _demo(folder: Path, port: int) -> tuple[subprocess.Popen[str], str]:
    """A running demo and what it printed, up to the line that says where it listens."""
    command = [sys.executable, "-m", "tidings", "demo", "--folder", str(folder)]
    process = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    printed = []
    for line in process.stdout:
        printed.append(line)
        if line.startswith("listening on "):
            return process, "".join(printed)
    process.wait()
    assert process.stderr is not None
    raise AssertionError("".join(printed) + process.stderr.read())


def _stop(process: subprocess.Popen[str]) -> None:
    with process:
        process.terminate()
        assert process.wait(STOP_S) == 0


def test_a_demo_is_ready_to_use_and_goes_on_where_it_was(tmp_path: Path) -> None:
    folder, port = tmp_path / "demo", lasting_port()
    url = f"http://127.0.0.1:{port}"
    process, printed = _demo(folder, port)
    try:
        credentials = json.loads((folder / "credentials.json").read_text())
        for person in PEOPLE:
            assert person.name in printed
        tokens = credentials["tokens"]
        assert all(token in printed for token in tokens.values())
        assert f"{url}/docs" in printed
        assert f"{url}/shop#{credentials['publishable_key']}" in printed
        assert (folder / "credentials.json").stat().st_mode & 0o077 == 0
        unread = {person.id: 0 for person in PEOPLE}
        for scene in SCENES:
            for user_id, count in scene.unread:
                unread[user_id] += 0 if user_id in scene.muted_by else count
        for user_id in ("ines", "tomasz", "jonas", "yuki", "olivia"):
            status, badge = _call(f"{url}/v1/badge", tokens[user_id])
            assert (status, badge["unread"]) == (200, unread[user_id]), user_id
        _, inbox = _call(f"{url}/v1/inbox", tokens["ines"])
        assert len(inbox["items"]) == sum("ines" in scene.members for scene in SCENES)
        _, queue = _call(f"{url}/v1/queue", tokens["tomasz"])
        assert queue["open"] == 2
        said = {"client_id": "again", "text": "I'll take Farid."}
        room = inbox["items"][0]["room_id"]
        status, entry = _call(f"{url}/v1/rooms/{room}/messages", tokens["ines"], said)
        assert status == 201
    finally:
        _stop(process)
    assert _ok("audit", "--store", f"sqlite:///{folder / 'demo.db'}").code == 0
    process, printed = _demo(folder, port)
    try:
        assert tokens["ines"] in printed
        again = _call(f"{url}/v1/rooms/{room}/messages?limit=1", tokens["ines"])[1]
        assert again["items"][0]["id"] == entry["id"]
    finally:
        _stop(process)
