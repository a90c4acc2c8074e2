"""How commands become durable: queues per room, turns between rooms that share people, retries.

Commands for a room wait in its queue, and what waits goes together in one transaction. Two
transactions in flight never share a room or a user: rooms that share a user are packed into one
transaction, or take turns. What was read before is remembered and never trusted: the conditions
of each plan make one that was planned on something old fail, and then it is read again; and
before an answer is given that no condition stands behind, what it rests on is read again too.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import copy_context
from typing import Any

import msgspec
import structlog

from tidings.chat import commands
from tidings.chat.batches import Batch, Waiting, pack, refuse, take
from tidings.chat.commands import Command, Post, Posted, changed_users, named_seqs, named_users
from tidings.chat.counts import fold_range, read_range
from tidings.chat.fanouts import Fanouts
from tidings.chat.known import Known, KnownRoom
from tidings.chat.plans import Plan, plan_commit
from tidings.chat.rows import BadgeRow, RoomRow, entry_to_wire
from tidings.chat.updates import Nudge, PostedEntry, Publish
from tidings.chat.views import RoomView, Torn
from tidings.clock import Clock
from tidings.cluster.nodes import Nodes
from tidings.errors import IdempotencyMismatch, NotFound, TidingsError, Unavailable
from tidings.ids import IdMaker
from tidings.storage.interface import SET_ITEMS_MAX, ConditionFailed, Failure, Item, Store
from tidings.storage.metered import current_meter, metering
from tidings.storage.tables import ENTRIES, RECEIPTS, room_key, user_key

QUEUE_COMMANDS_MAX = 2_000
"""Commands that may wait for one room."""
WAIT_S_MAX = 10.0
"""How long a command may wait to become durable before its sender is told to try again."""
EXPIRY_PAUSE_S = 0.5
"""How late a command may be told so, at most."""
RETRIES_MAX = 50
"""How often one batch is planned again because others were faster."""
RETRY_PAUSE_S_MAX = 0.05
STOP_POLL_S = 0.005
"""How often a stop looks whether everything has ended."""
SPENT_SAMPLED_S = 0.25
"""How often one of the commits whose price nobody asked for is metered, and counted as all since:
metering each takes a fifth of the throughput of the embedded store, every 32nd a tenth."""

_log = structlog.get_logger(__name__)


class _Turn(msgspec.Struct):
    """Somebody who waits for rooms and users that are busy."""

    names: frozenset[str]
    granted: asyncio.Future[None]


class Commits:
    """The only way to change a room.

    `on_room_changed(before, after)` hears of each commit that changed more of a room than its
    head; `before` is None for a new room. `on_committed(entries, duration_s)` counts, and
    `on_spent(read_units, write_units)` what commits took that no caller is charged for.
    `nudge(workspace, users)` hears of users who may have got something without being told, since
    its answer was lost. This node of `nodes` runs the fan-outs that are opened here; one that is
    in nobody's view where none are given.
    """

    def __init__(
        self, store: Store, clock: Clock, publish: Publish, nodes: Nodes | None = None
    ) -> None:
        self._store = store
        self._clock = clock
        self._nodes = nodes or Nodes(store, clock, IdMaker(clock))
        self._publish = publish
        self._queues: dict[tuple[str, str], deque[Waiting]] = {}
        self._unanswered: deque[Waiting] = deque()
        """Everybody who waits, and who was answered after somebody who does, by deadline."""
        self._is_expiry_due = False
        self._turns: deque[_Turn] = deque()
        self._busy: set[str] = set()
        self.known = Known(store, self._busy)
        self._loading: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_pump_due = False
        self._is_stopping = False
        # Commits belong to nobody's request: their tasks start from where this was made.
        self._context = copy_context()
        self._fanouts = Fanouts(store, clock, self._nodes, self, self._context)
        self.on_room_changed: Callable[[RoomRow | None, RoomRow], None] | None = None
        self.on_committed: Callable[[int, float], None] | None = None
        self.on_spent: Callable[[float, float], None] | None = None
        self._unasked = 0
        """Commits whose price nobody asked for, since one of them was metered."""
        self._sampled_s = 0.0
        self.nudge: Nudge = _nobody_to_nudge

    # --- asking --------------------------------------------------------------------------------

    def submit(self, workspace: str, room_id: str, command: Command) -> asyncio.Future[Any]:
        """Queue a command. The future has its answer once that is durable, or a TidingsError.

        Commands for one room are applied in the order of their submission. Never blocks. When
        the future fails with Unavailable, the command may have been applied or not.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        queue = self._queues.get((workspace, room_id))
        if queue is None:
            queue = self._queues[workspace, room_id] = deque()
        if self._is_stopping or len(queue) >= QUEUE_COMMANDS_MAX:
            answer.set_exception(Unavailable("Too much waits for this room."))
            return answer
        waiting = Waiting(command, answer, current_meter(), loop.time() + WAIT_S_MAX)
        queue.append(waiting)
        unanswered = self._unanswered
        while unanswered and unanswered[0].answer.done():
            unanswered.popleft()
        unanswered.append(waiting)
        if not self._is_expiry_due:
            self._is_expiry_due = True
            loop.call_later(WAIT_S_MAX, self._expire)
        self._pump_soon()
        return answer

    def _expire(self) -> None:
        """Answer whoever has waited for too long, wherever the command is meanwhile."""
        loop = asyncio.get_running_loop()
        unanswered = self._unanswered
        while unanswered and (unanswered[0].answer.done() or unanswered[0].deadline <= loop.time()):
            answer = unanswered.popleft().answer
            if not answer.done():
                answer.set_exception(Unavailable("This took too long; try it again."))
        self._is_expiry_due = bool(unanswered)
        if unanswered:
            loop.call_later(max(EXPIRY_PAUSE_S, unanswered[0].deadline - loop.time()), self._expire)

    async def look(
        self, workspace: str, room_id: str, users: Sequence[str] = ()
    ) -> RoomView | None:
        """The room with its members, and the rows of the users; None where there is no room."""
        return await self.known.look(workspace, room_id, users)

    async def founded(self, workspace: str, room_id: str) -> None:
        """Wait until all founders of a new room are in it. Raises Unavailable in time."""
        await self._fanouts.founded(workspace, room_id)

    # --- turns ---------------------------------------------------------------------------------

    @asynccontextmanager
    async def turn(self, names: Iterable[str]) -> AsyncIterator[None]:
        """Hold rooms and users, by their keys, while no other transaction touches them."""
        turn = _Turn(frozenset(names), asyncio.get_running_loop().create_future())
        self._turns.append(turn)
        self._pump_soon()
        try:
            await turn.granted
            yield
        finally:
            if turn.granted.done() and not turn.granted.cancelled():
                self._release(turn.names)
            elif turn in self._turns:
                self._turns.remove(turn)

    def _release(self, names: Iterable[str]) -> None:
        self._busy.difference_update(names)
        self._pump_soon()

    def _pump_soon(self) -> None:
        if not self._is_pump_due:
            self._is_pump_due = True
            asyncio.get_running_loop().call_soon(self._pump, context=self._context)

    def _pump(self) -> None:
        """Start whatever can go now. Who came first and can't go keeps its people for itself."""
        self._is_pump_due = False
        reserved: set[str] = set()
        for turn in list(self._turns):
            if turn.names & self._busy or turn.names & reserved:
                reserved |= turn.names
            else:
                self._turns.remove(turn)
                if not turn.granted.cancelled():
                    self._busy |= turn.names
                    turn.granted.set_result(None)
        batches: list[Batch] = []
        packed: set[str] = set()
        for (workspace, room_id), queue in list(self._queues.items()):
            if not queue:
                del self._queues[workspace, room_id]
                continue
            key = room_key(workspace, room_id)
            if key in self._busy or key in self._loading:
                continue
            known = self.known.room(key)
            is_creation = isinstance(queue[0].command, commands.Create)
            if known is None and not is_creation:
                self._loading.add(key)
                self._start(self._load_for_queue(workspace, room_id, key))
                continue
            batch = take(workspace, room_id, key, queue, known)
            if batch.names & self._busy or batch.names & reserved:
                reserved |= batch.names
            elif not batch.names & packed:
                batches.append(batch)
                packed |= batch.names
                self._drop_taken(workspace, room_id, queue, batch.rooms[room_id])
            elif pack(batch, batches):
                packed |= batch.names
                self._drop_taken(workspace, room_id, queue, batch.rooms[room_id])
            else:
                reserved |= batch.names
        for batch in batches:
            self._busy |= batch.names
            self._start(self._commit(batch))

    def _drop_taken(
        self, workspace: str, room_id: str, queue: deque[Waiting], taken: list[Waiting]
    ) -> None:
        """Take the first of a queue, which then goes behind all others that wait."""
        for _ in taken:
            queue.popleft()
        del self._queues[workspace, room_id]
        if queue:
            self._queues[workspace, room_id] = queue

    async def _load_for_queue(self, workspace: str, room_id: str, key: str) -> None:
        """Read a room that commands wait for; without one they are refused, those that wait now.

        Who came while it was being read is not: the room may have been made meanwhile.
        """
        queue = self._queues[workspace, room_id]
        waiting = len(queue)
        try:
            if await self.known.read_room(workspace, room_id, is_fresh=True) is None:
                refuse(queue, waiting, NotFound("There is no such room."))
        except TidingsError as error:
            refuse(queue, waiting, error)
        except Exception:  # noqa: BLE001  # the root of a task
            _log.exception("unexpected", place="load")
            refuse(queue, waiting, Unavailable("The service failed to do this."))
        finally:
            self._loading.discard(key)
            self._pump_soon()

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine, context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- the commit ----------------------------------------------------------------------------

    async def _commit(self, batch: Batch) -> None:
        waiting = [one for room in batch.rooms.values() for one in room]
        batch.size = len(waiting)
        batch.began_s = asyncio.get_running_loop().time()
        try:
            if self._is_metered(batch, waiting):
                with metering() as batch.spent:
                    await self._commit_until_done(batch)
            else:
                await self._commit_until_done(batch)
        except TidingsError as error:
            self.known.forget(batch.names)
            for one in waiting:
                batch.answer(one, error)
        except Exception:  # noqa: BLE001  # the root of a task
            _log.exception("unexpected", place="commit")
            self.known.forget(batch.names)
            for one in waiting:
                batch.answer(one, Unavailable("The service failed to do this."))
        finally:
            self._release(batch.names)
            self._count_spent(batch, waiting)

    def _is_metered(self, batch: Batch, waiting: Sequence[Waiting]) -> bool:
        """Whether somebody asked for the price, or it is the turn of a sample."""
        if any(one.meter is not None for one in waiting):
            return True
        self._unasked += 1
        if self.on_spent is None or batch.began_s - self._sampled_s < SPENT_SAMPLED_S:
            return False
        batch.stands_for, self._unasked, self._sampled_s = self._unasked, 0, batch.began_s
        return True

    def _count_spent(self, batch: Batch, waiting: Sequence[Waiting]) -> None:
        """Tell what was spent for those who did not ask."""
        if batch.spent is None or self.on_spent is None:
            return
        unasked = sum(one.meter is None for one in waiting)
        weight = batch.stands_for if unasked == batch.size else unasked / batch.size
        self.on_spent(batch.spent.read_units * weight, batch.spent.write_units * weight)

    async def _commit_until_done(self, batch: Batch) -> None:
        """Plan and write until every command has its answer, or wait for another turn."""
        pending = batch.rooms
        remembered = {name for name in batch.names if name in self.known}
        for attempt in range(RETRIES_MAX):
            left = {
                room_id: [one for one in waiting if not one.answer.done()]
                for room_id, waiting in pending.items()
            }
            pending = {room_id: waiting for room_id, waiting in left.items() if waiting}
            if not pending:
                return
            loaded = await self._load(batch, pending)
            if loaded is None:
                self._put_back(batch.workspace, pending)
                return
            work, badges = loaded
            try:
                plan = plan_commit(batch.workspace, work, badges, self._nodes.node_id)
                if plan.unproven and await self._doubt(batch.workspace, plan, remembered):
                    continue
                if plan.refused and await self._answer_accepted(batch, plan, pending):
                    self.nudge(batch.workspace, list(badges))
                    continue
                if len(plan.writes) > SET_ITEMS_MAX:
                    # It is not as it was remembered when they were taken.
                    self._put_back(batch.workspace, pending)
                    return
                if plan.writes:
                    await self._store.write(*plan.writes)
            except ConditionFailed as failed:
                if await self._answer_repeated(batch, plan, failed.failures, pending):
                    self.nudge(batch.workspace, list(badges))
                self._refuse_unattached(plan, failed.failures, pending)
                known = plan.receipts.keys() | plan.attached.keys()
                if any(failure.index not in known for failure in failed.failures):
                    await self._forget_and_pause(batch, remembered, attempt)
            except Torn:
                await self._forget_and_pause(batch, remembered, attempt)
            except Unavailable:  # applied or not, now or in a moment
                self.nudge(batch.workspace, list(badges))
                raise
            else:
                self._finish(batch, plan, pending, work)
                return
        raise Unavailable("Others were always faster; try it again.")

    async def _doubt(self, workspace: str, plan: Plan, remembered: set[str]) -> bool:
        """Read again what answers rest on alone; whether any of that was only remembered."""
        doubted: set[str] = set()
        for room_id, command in plan.unproven:
            key = room_key(workspace, room_id)
            if key in remembered - doubted:
                doubted.add(key)
                await self.known.read_room(workspace, room_id, is_fresh=True, is_held=True)
            if isinstance(command, commands.Read | commands.Mute | commands.Hide):
                key = user_key(workspace, command.user_id)
                if key in remembered:
                    doubted.add(key)
                    self.known.forget([key])
        remembered -= doubted
        return bool(doubted)

    async def _forget_and_pause(self, batch: Batch, remembered: set[str], attempt: int) -> None:
        """Somebody else was faster: read everything anew, and let them finish if it is so again."""
        self.known.forget(batch.names)
        remembered.clear()
        if attempt:
            pause_s = min(RETRY_PAUSE_S_MAX, 0.001 * 2**attempt)
            await asyncio.sleep(random.uniform(0, pause_s))  # noqa: S311

    def _put_back(self, workspace: str, pending: Mapping[str, list[Waiting]]) -> None:
        """The room has changed: these commands need another turn, before those behind them."""
        for room_id, waiting in pending.items():
            queue = self._queues.setdefault((workspace, room_id), deque())
            queue.extendleft(reversed(waiting))

    def _finish(
        self,
        batch: Batch,
        plan: Plan,
        pending: Mapping[str, list[Waiting]],
        work: Sequence[tuple[str, RoomView, Sequence[Command]]],
    ) -> None:
        """Remember, answer and tell, in one go: whoever is woken sees all of it."""
        workspace = batch.workspace
        self.known.remember(workspace, plan)
        answers = iter(plan.answers)
        for room_id, _, _ in work:
            for one in pending[room_id]:
                batch.answer(one, next(answers)[1])
        self._publish(workspace, plan.updates)
        if self.on_committed is not None and plan.writes:
            duration_s = asyncio.get_running_loop().time() - batch.began_s
            self.on_committed(plan.entries_count, duration_s)
        for room_id, view, _ in work:
            after = plan.rooms.get(room_id)
            if after is None:
                continue
            if after.is_fanning:
                self._fanouts.appended.note(view.room, after, plan.writes)
            if after.is_fanning and (view.room is None or not view.room.is_fanning):
                self._fanouts.wake(workspace, room_id)
            if self.on_room_changed is not None and _is_changed(view.room, after):
                self.on_room_changed(view.room, after)

    async def _answer_accepted(
        self, batch: Batch, plan: Plan, pending: Mapping[str, list[Waiting]]
    ) -> bool:
        """Answer posts that would be refused now, but were accepted before; whether any were."""
        found = False
        for room, post in plan.refused:
            receipt = await self._store.get(RECEIPTS, (room, post.receipt))
            if receipt is not None:
                await self._answer_again(batch, post, receipt, pending)
                found = True
        return found

    async def _answer_repeated(
        self,
        batch: Batch,
        plan: Plan,
        failures: Sequence[Failure],
        pending: Mapping[str, list[Waiting]],
    ) -> bool:
        """Answer posts whose receipts are there already with the entries they led to; whether
        there were any.
        """
        found = False
        for failure in failures:
            post = plan.receipts.get(failure.index)
            if post is not None and failure.item is not None:
                await self._answer_again(batch, post, failure.item, pending)
                found = True
        return found

    def _refuse_unattached(
        self, plan: Plan, failures: Sequence[Failure], pending: Mapping[str, list[Waiting]]
    ) -> None:
        """Let the next plan refuse posts whose blobs went meanwhile."""
        for failure in failures:
            for post in plan.attached.get(failure.index, ()):
                unfit = tuple(blob["blob_id"] for blob in post.blobs)
                for one in (one for waiting in pending.values() for one in waiting):
                    if one.command is post:
                        one.command = msgspec.structs.replace(post, unfit_blobs=unfit)

    async def _answer_again(
        self, batch: Batch, post: Post, receipt: Item, pending: Mapping[str, list[Waiting]]
    ) -> None:
        """Answer a post with the entry that its receipt names."""
        answer: Posted | TidingsError
        if receipt["body_hash"] != post.body_hash:
            answer = IdempotencyMismatch()
        else:
            key = receipt["room"], receipt["seq"]
            entry = await self._store.get(ENTRIES, key)
            assert entry is not None, "a receipt names an entry"
            room_id = key[0].partition("#")[2]
            answer = Posted(PostedEntry(entry_to_wire(entry, room_id)), is_new=False)
        for waiting in pending.values():
            for one in [one for one in waiting if one.command is post]:
                waiting.remove(one)
                batch.answer(one, answer)

    # --- loading and remembering ----------------------------------------------------------------

    async def _load(
        self, batch: Batch, pending: Mapping[str, list[Waiting]]
    ) -> tuple[list[tuple[str, RoomView, Sequence[Command]]], dict[str, BadgeRow]] | None:
        """Everything that a plan for these commands reads; None where it needs another turn."""
        workspace = batch.workspace
        rooms: list[tuple[str, KnownRoom | None, list[Command]]] = []
        wanted: list[tuple[str, int, set[str]]] = []
        users: set[str] = set()
        for room_id, waiting in pending.items():
            waiting_commands = [one.command for one in waiting]
            known = await self.known.read_room(workspace, room_id, is_fresh=False, is_held=True)
            rooms.append((room_id, known, waiting_commands))
            users.update(user for command in waiting_commands for user in changed_users(command))
            if known is None:
                continue
            named = {user for command in waiting_commands for user in named_users(command)}
            if known.members is not None:
                named |= known.members
                users |= known.members
            wanted.append((room_id, known.row.epoch, named))
        strangers = {user_key(workspace, user) for user in users} - batch.names
        if strangers:  # they joined since the batch was taken
            return None
        badges = await self.known.badges(workspace, users)
        found = await self.known.participations(workspace, wanted, held=users)
        work: list[tuple[str, RoomView, Sequence[Command]]] = []
        for room_id, known, waiting_commands in rooms:
            if known is None:
                view = RoomView(room=None)
            else:
                rows = found[room_id]
                view = RoomView(room=known.row, member_ids=known.members, participations=rows)
                entries = await self._named_entries(view, waiting_commands)
                if entries:
                    view = msgspec.structs.replace(view, entries=entries)
            work.append((room_id, view, waiting_commands))
        return work, badges

    async def _named_entries(
        self, view: RoomView, waiting: Sequence[Command]
    ) -> dict[int, Item] | None:
        room = view.room
        assert room is not None
        seqs: set[int] = set()
        for command in waiting:
            if isinstance(command, commands.Post):  # nearly all of them
                continue
            seqs.update(seq for seq in named_seqs(command) if 1 <= seq <= room.head)
            if isinstance(command, commands.Read):
                row = view.participations.get(command.user_id)
                if row is None or row.is_left:
                    continue
                folding = fold_range(row, room.head)
                if folding is not None:
                    seqs.update(range(folding[0], folding[1] + 1))
                reading = read_range(row, room.head, command.seq)
                if reading is not None:
                    seqs.update(range(reading[0], reading[1] + 1))
        return await self.known.entries(room, seqs) if seqs else None

    def publish(self, workspace: str, plan: Plan) -> None:
        """Tell what a fan-out's commit changed."""
        self._publish(workspace, plan.updates)

    # --- life ----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Go on with fan-outs that a crash or a stop left open."""
        await self._fanouts.start()

    async def settle(self) -> None:
        """Wait for the fan-outs under way here, for a while."""
        await self._fanouts.settle()

    async def stop(self) -> None:
        """Take nothing new, finish what waits, and leave open fan-outs to the next start."""
        self._is_stopping = True
        await self._fanouts.stop()
        while self._tasks or any(self._queues.values()):  # noqa: ASYNC110  # ends with its tasks
            await asyncio.sleep(STOP_POLL_S)


def _nobody_to_nudge(workspace: str, users: Sequence[str]) -> None:
    """Nothing delivers."""


def _is_changed(before: RoomRow | None, after: RoomRow) -> bool:
    """Whether more than the head and the minute of the last activity is different."""
    if before is None:
        return True
    same = msgspec.structs.replace(before, head=after.head, listed_at=after.listed_at)
    return same != after
