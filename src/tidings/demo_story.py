"""The sample workspace of `tidings demo`: Kettlewright, a small maker of kettles and grinders.

Everything here is made up. Times are minutes before the moment the demo is first started.
"""

from __future__ import annotations

import msgspec

from tidings import wire

HOUR = 60
DAY = 24 * HOUR


class Person(msgspec.Struct, frozen=True):
    """Somebody of the story."""

    id: str
    name: str
    role: wire.Role
    email: str
    attributes: dict[str, str]


class Line(msgspec.Struct, frozen=True):
    """One message, and what became of it."""

    ago_minutes: int
    who: str
    text: str
    mentions: tuple[str, ...] = ()
    reply_to: int | None = None
    """Which line of the room it answers, the first being 1."""
    reactions: tuple[tuple[str, str], ...] = ()
    """(emoji, who)"""
    edited: str | None = None
    """What the text was changed to two minutes later."""
    is_taken_back: bool = False
    """Deleted by its author a minute later."""


class Scene(msgspec.Struct, frozen=True):
    """One room and what was said in it."""

    kind: wire.RoomKind
    members: tuple[str, ...]
    lines: tuple[Line, ...]
    id: str | None = None
    title: str | None = None
    scope: wire.Scope | None = None
    about: str | None = None
    status: wire.Status = "open"
    assignee: str | None = None
    unread: tuple[tuple[str, int], ...] = ()
    """Who has not read the last so many messages; all others have read everything."""
    muted_by: tuple[str, ...] = ()


PEOPLE = (
    Person("ines", "Inês Carvalho", "admin", "ines@kettlewright.example", {"team": "Care"}),
    Person("tomasz", "Tomasz Wilk", "manager", "tomasz@kettlewright.example", {"team": "Care"}),
    Person("amara", "Amara Okafor", "manager", "amara@kettlewright.example", {"team": "Workshop"}),
    Person("jonas", "Jonas Lindqvist", "manager", "jonas@kettlewright.example", {"team": "Stock"}),
    Person("priya", "Priya Raman", "manager", "priya@kettlewright.example", {"team": "Website"}),
    Person("parcels", "Parcel watch", "bot", "parcels@kettlewright.example", {"team": "Stock"}),
    Person("hannah", "Hannah Brückner", "customer", "hannah@mail.example", {"city": "Lübeck"}),
    Person("mateo", "Mateo Ruiz", "customer", "mateo@mail.example", {"city": "Valencia"}),
    Person("yuki", "Yuki Tanabe", "customer", "yuki@mail.example", {"city": "Utrecht"}),
    Person("olivia", "Olivia Thornton", "customer", "olivia@mail.example", {"city": "Leeds"}),
    Person("samuel", "Samuel Adeyemi", "customer", "samuel@roast.example", {"plan": "trade"}),
    Person("chloe", "Chloé Marchand", "customer", "chloe@mail.example", {"city": "Nantes"}),
    Person("farid", "Farid Haddad", "customer", "farid@mail.example", {"city": "Antwerp"}),
    Person("greta", "Greta Nyman", "customer", "greta@mail.example", {"city": "Turku"}),
)

TEAM = ("ines", "tomasz", "amara", "jonas", "priya")

SCENES = (
    Scene(
        kind="group",
        id="counter",
        title="The counter",
        scope="public",
        members=(*TEAM, "parcels"),
        unread=(("amara", 2), ("priya", 3)),
        lines=(
            Line(
                2 * DAY + 95,
                "ines",
                "Good morning all. Two things this week: the autumn catalogue goes to print on "
                "Thursday, and the lime-scale batch must be off our shelves by then.",
                reactions=(("👍", "tomasz"), ("👍", "amara"), ("👍", "jonas")),
            ),
            Line(
                2 * DAY + 88,
                "jonas",
                "Counted again: 61 kettles of batch 0417 are left in Porto, none in Gdynia. "
                "They can go back with Wednesday's lorry.",
            ),
            Line(
                2 * DAY + 80,
                "ines",
                "@amara can the workshop take 61 on Thursday, or should they wait in Porto?",
                mentions=("amara",),
                reply_to=2,
            ),
            Line(
                2 * DAY + 41,
                "amara",
                "We can take 40. The rest on Monday, if that is all right.",
                reply_to=3,
                edited="We can take 45 if the descaler arrives. The rest on Monday.",
                reactions=(("🙏", "ines"),),
            ),
            Line(
                DAY + 3 * HOUR,
                "parcels",
                "Parcel KW-20931 to Lübeck has been at the Hamburg hub for 48 hours.",
            ),
            Line(
                DAY + 172,
                "tomasz",
                "That one is Hannah's grinder. I'm talking to her, leave it with me.",
                reply_to=5,
                reactions=(("❤️", "ines"),),
            ),
            Line(
                5 * HOUR,
                "ines",
                "Half past four: cake in the kitchen. Jonas turns forty and hoped nobody knew.",
                reactions=(
                    ("🎂", "tomasz"),
                    ("🎂", "amara"),
                    ("🎂", "priya"),
                    ("😱", "jonas"),
                ),
            ),
            Line(4 * HOUR + 50, "jonas", "Who told you?!"),
            Line(34, "parcels", "Parcel KW-20977 to Leeds was delivered to a neighbour."),
            Line(
                21,
                "tomasz",
                "@priya Olivia says the tracking page shows her an empty list. Is that ours?",
                mentions=("priya",),
            ),
        ),
    ),
    Scene(
        kind="group",
        id="workshop",
        title="Workshop & repairs",
        scope="public",
        members=("amara", "tomasz", "jonas", "ines"),
        unread=(("ines", 1),),
        muted_by=("jonas",),
        lines=(
            Line(
                DAY + 7 * HOUR,
                "amara",
                "Of the 23 kettles that came back this month, 17 have the same cracked seal under "
                "the lid. It is the supplier's new rubber, I am nearly sure.",
                reactions=(("👀", "tomasz"), ("👀", "ines")),
            ),
            Line(
                DAY + 6 * HOUR + 30,
                "tomasz",
                "That fits: everyone I have asked bought theirs after the 3rd of August.",
                reply_to=1,
            ),
            Line(
                DAY + 6 * HOUR,
                "amara",
                "Then until we know more: no repairs on seals, straight replacement, and keep the "
                "old ones in the blue box. I want to boil a few of them for a week.",
            ),
            Line(DAY + 5 * HOUR, "jonas", "Blue box is under the bench, labelled."),
            Line(
                3 * HOUR + 10,
                "amara",
                "Day one: three of ten have split. Photographs are on the board.",
            ),
        ),
    ),
    Scene(
        kind="group",
        id="website",
        title="Website",
        scope="private",
        members=("priya", "ines", "tomasz"),
        unread=(("priya", 1),),
        lines=(
            Line(
                DAY + 4 * HOUR,
                "priya",
                "The new returns form is on the test site. It asks for the order number first, "
                "so that people see at once whether the guarantee still runs.",
            ),
            Line(
                DAY + 3 * HOUR + 20,
                "ines",
                "I like it. One thing: many do not have the number at hand. Can it also take the "
                "e-mail address?",
                reply_to=1,
            ),
            Line(
                DAY + 3 * HOUR,
                "priya",
                "Yes, but only with a code by mail, or anybody could read anybody's orders.",
                reactions=(("💯", "tomasz"),),
            ),
            Line(
                HOUR + 15,
                "ines",
                "Agreed. @priya can it be live before the catalogue is?",
                mentions=("priya",),
            ),
        ),
    ),
    Scene(
        kind="support",
        id="support-hannah",
        title="Where is my grinder?",
        members=("hannah", "tomasz"),
        assignee="tomasz",
        unread=(("tomasz", 1),),
        lines=(
            Line(
                DAY + 4 * HOUR + 12,
                "hannah",
                "Hello, I ordered a grinder last Tuesday (order 48213). The tracking has said "
                "'in transit, Hamburg' for three days now. Is it lost?",
            ),
            Line(
                DAY + 4 * HOUR + 3,
                "tomasz",
                "Hello Hannah, thank you for the number. It has not moved since Friday, you are "
                "right. I have asked the carrier to look for it and will write to you tomorrow "
                "before noon, whatever they say.",
            ),
            Line(
                DAY + 4 * HOUR, "hannah", "That is kind, thank you.", reactions=(("🙂", "tomasz"),)
            ),
            Line(
                4 * HOUR + 30,
                "tomasz",
                "Good news, it was found behind a pallet. New delivery date: tomorrow between nine "
                "and eleven. If it is not there by noon I send another one the same day.",
            ),
            Line(26, "hannah", "Wonderful! Can they leave it with the bakery downstairs?"),
        ),
    ),
    Scene(
        kind="support",
        id="support-mateo",
        title="Kettle drips at the lid",
        members=("mateo", "amara"),
        assignee="amara",
        status="snoozed",
        unread=(),
        lines=(
            Line(
                DAY + 9 * HOUR,
                "mateo",
                "Hi! My kettle has started to drip under the lid when it boils. It is two months "
                "old. Should I keep using it?",
            ),
            Line(
                DAY + 8 * HOUR + 40,
                "amara",
                "Hi Mateo, please don't, the steam can reach the switch. We know this seal. I'm "
                "sending you a new kettle today, and there is nothing to pay.",
            ),
            Line(DAY + 8 * HOUR + 31, "mateo", "Oh, that was quick. Do you need the old one back?"),
            Line(
                DAY + 8 * HOUR + 20,
                "amara",
                "Only the lid, if you would be so kind: the label is in the parcel. It helps us to "
                "find out why they crack.",
                reactions=(("👍", "mateo"),),
            ),
        ),
    ),
    Scene(
        kind="support",
        id="support-yuki",
        title="Grind size for a moka pot",
        members=("yuki", "tomasz"),
        assignee="tomasz",
        status="closed",
        unread=(("yuki", 1),),
        lines=(
            Line(
                2 * DAY + 5 * HOUR,
                "yuki",
                "Which setting do you suggest for a moka pot? On 4 it comes out sour, on 2 the pot "
                "clogs.",
            ),
            Line(
                2 * DAY + 4 * HOUR + 50,
                "tomasz",
                "Try 3, and fill the pot with water that is already hot: it spends less time on "
                "the way, and the sourness goes. If 3 still clogs, shake the basket and don't "
                "press the coffee down.",
            ),
            Line(
                2 * DAY + 3 * HOUR,
                "yuki",
                "3 with hot water is perfect. I would never have thought of the water!",
                reactions=(("☕", "tomasz"),),
            ),
            Line(2 * DAY + 2 * HOUR + 55, "tomasz", "Enjoy it! I'm closing this; write any time."),
        ),
    ),
    Scene(
        kind="support",
        id="support-olivia",
        title="Tracking page is empty",
        members=("olivia", "tomasz"),
        assignee="tomasz",
        unread=(("olivia", 1), ("tomasz", 0)),
        lines=(
            Line(44, "olivia", "Your tracking page shows me nothing at all. Firefox, on a phone."),
            Line(
                40,
                "olivia",
                "my order number is 48 3",
                is_taken_back=True,
            ),
            Line(39, "olivia", "Order 48377, sorry, thumbs."),
            Line(
                23,
                "tomasz",
                "Thank you, Olivia. I see the parcel: it was left with a neighbour ten minutes "
                "ago. Why the page is empty I don't know yet, I have asked the person who made it.",
            ),
        ),
    ),
    Scene(
        kind="support",
        id="support-samuel",
        title="Trade order, 24 kettles",
        members=("samuel", "ines"),
        assignee="ines",
        unread=(("ines", 2),),
        lines=(
            Line(
                DAY + 2 * HOUR,
                "samuel",
                "Good afternoon. We are opening our third coffee bar in October and need 24 of the "
                "one-litre kettles, matt black. Is there a trade price, and could they be here by "
                "the 28th?",
            ),
            Line(
                DAY + HOUR + 20,
                "ines",
                "Good afternoon Mr Adeyemi, congratulations! From 20 pieces the trade price is 15% "
                "below the list. We have 31 in matt black, so the 28th is safe if you confirm by "
                "Friday. I've put them aside for you until then.",
                edited="Good afternoon Mr Adeyemi, congratulations! From 20 pieces the trade price "
                "is 18% below the list. We have 31 in matt black, so the 28th is safe if you "
                "confirm by Friday. I've put them aside for you until then.",
            ),
            Line(
                52,
                "samuel",
                "Thank you, that is very fair. I confirm the 24.",
                reply_to=2,
                reactions=(("🎉", "ines"),),
            ),
            Line(48, "samuel", "Could the invoice be made out to Adeyemi & Daughters, please?"),
        ),
    ),
    Scene(
        kind="support",
        id="support-chloe",
        title="Guarantee without a receipt",
        members=("chloe",),
        lines=(
            Line(
                73,
                "chloe",
                "Bonjour! My mother's kettle no longer switches off by itself. It was a present, "
                "and I have no receipt. Is there anything you can do?",
            ),
            Line(70, "chloe", "The number under it is KW1-0417-2286, in case it helps."),
        ),
    ),
    Scene(
        kind="support",
        id="support-farid",
        title="Change of address",
        members=("farid",),
        lines=(
            Line(
                15,
                "farid",
                "Hi, I moved last week and forgot to tell you. Can order 48401 still go to the new "
                "address, or is it on its way already?",
            ),
        ),
    ),
    Scene(
        kind="support",
        id="support-greta",
        title="A thank-you",
        members=("greta", "amara"),
        assignee="amara",
        status="closed",
        lines=(
            Line(
                DAY + 10 * HOUR,
                "greta",
                "The grinder you repaired is quieter than when it was new. Please tell whoever did "
                "it!",
                reactions=(("😊", "amara"),),
            ),
            Line(
                DAY + 9 * HOUR + 45,
                "amara",
                "That was me, and you have made my day. It got the bearings of the new model.",
                reactions=(("❤️", "greta"),),
            ),
        ),
    ),
    Scene(
        kind="group",
        id="about-samuel",
        title="About Adeyemi & Daughters",
        scope="private",
        about="support-samuel",
        members=("ines", "jonas", "tomasz"),
        unread=(("jonas", 1),),
        lines=(
            Line(
                DAY + HOUR + 50,
                "ines",
                "They paid two weeks late last year, but they did pay, and every bar of theirs has "
                "our name on the counter. I'd give them 18.",
            ),
            Line(DAY + HOUR + 42, "tomasz", "Agreed, 18 it is.", reactions=(("👍", "ines"),)),
            Line(
                46,
                "ines",
                "Confirmed! @jonas 24 matt black to London, there by the 28th.",
                mentions=("jonas",),
            ),
        ),
    ),
    Scene(
        kind="direct",
        members=("ines", "tomasz"),
        unread=(("tomasz", 1),),
        lines=(
            Line(
                3 * HOUR + 30,
                "tomasz",
                "Could I leave at three on Friday? My sister lands at four.",
            ),
            Line(3 * HOUR + 22, "ines", "Of course. I'll take the evening queue."),
            Line(3 * HOUR + 20, "tomasz", "You're the best.", reactions=(("😇", "ines"),)),
            Line(12, "ines", "Chloé and Farid wait unassigned, by the way. Whom do you want?"),
        ),
    ),
    Scene(
        kind="direct",
        members=("amara", "jonas"),
        unread=(("jonas", 1),),
        lines=(
            Line(6 * HOUR, "jonas", "Descaler arrives tomorrow at ten, twelve canisters."),
            Line(5 * HOUR + 40, "amara", "Perfect. And happy birthday, before the cake does it."),
        ),
    ),
    Scene(
        kind="direct",
        members=("priya", "ines"),
        lines=(
            Line(DAY + 30, "priya", "Do you have ten minutes for the returns form tomorrow?"),
            Line(DAY + 22, "ines", "At eleven? Bring the ugly version too, I like to compare."),
            Line(DAY + 20, "priya", "There are three ugly versions. Eleven it is."),
        ),
    ),
)
