/**
 * The ways that updates reach a device: a socket, a stream, or polls.
 *
 * Each is a function (calls, {since, have}, {onOpen, onFrames}, signal) whose promise is settled
 * when the connection ends: resolved for an ordinary end, rejected with a `Problem` or
 * `Unreachable`. `onOpen` gets a function that sends a frame, or null where messages are posted.
 */

import { Problem, problemOfReply, problemOfStatus, Unreachable } from "./problems.js";

/** A way that has nothing to say by then is taken for blocked. */
const OPEN_DEADLINE_MS = 8_000;
const PING_EVERY_MS = 20_000;
const PONG_DEADLINE_MS = 10_000;
/** After a reason for doubt, such as a wake-up, the answer has to come sooner. */
const PROBE_DEADLINE_MS = 3_000;
const WATCH_EVERY_MS = 1_000;
/** A stream has a heartbeat every 15 s; one that is silent for three of them is given up. */
const STREAM_SILENCE_MAX_MS = 45_000;
const STREAM_CHARACTERS_MAX = 16 * 1024 * 1024;
const POLL_WAIT_S = 20;
const POLL_ENTRIES_MAX = 500;
/** Polls end by themselves after a while, so that a better way is tried again. */
const POLLING_MAX_MS = 300_000;

/** Close codes that say the same as an HTTP status. */
const STATUSES = { 4401: 401, 4403: 403, 4429: 429 };

const silence = () => Object.assign(new Unreachable("nothing is heard"), { isSilence: true });

/** Frames in a text, batches unpacked. */
function unpack(text) {
  const frame = JSON.parse(text);
  return frame.type === "batch" ? frame.updates : [frame];
}

export function overSocket(calls, { since, have }, { onOpen, onFrames }, signal) {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(calls.url.replace(/^http/, "ws") + "/v1/ws", "tidings.v1");
    let answerBy = performance.now() + OPEN_DEADLINE_MS;
    let pingAt = Infinity;

    const send = (frame) => socket.readyState === WebSocket.OPEN && socket.send(JSON.stringify(frame));
    const probe = (deadlineMs) => {
      if (send({ type: "ping" }) !== false) {
        answerBy = Math.min(answerBy, performance.now() + deadlineMs);
        pingAt = Infinity;
      }
    };
    const watch = setInterval(() => {
      const now = performance.now();
      if (now > answerBy) end(silence());
      else if (now > pingAt) probe(PONG_DEADLINE_MS);
    }, WATCH_EVERY_MS);
    const stop = () => end(null);

    function end(error) {
      clearInterval(watch);
      signal.removeEventListener("abort", stop);
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket.close();
      if (error) reject(error);
      else resolve();
    }

    signal.addEventListener("abort", stop);
    if (signal.aborted) return stop();
    socket.onopen = () => {
      const auth = { type: "auth", token: calls.token };
      if (since) auth.since = since;
      if (since && Object.keys(have).length) auth.have = have;
      send(auth);
      onOpen(send, () => probe(PROBE_DEADLINE_MS));
    };
    socket.onmessage = ({ data }) => {
      answerBy = Infinity;
      pingAt = performance.now() + PING_EVERY_MS;
      try {
        onFrames(unpack(data));
      } catch (error) {
        end(error);
      }
    };
    socket.onclose = ({ code }) => {
      const status = STATUSES[code];
      if (status) end(problemOfStatus(status));
      else end(code === 1006 ? new Unreachable("the socket broke") : null);
    };
  });
}

/** Server-Sent Events (WHATWG HTML, 9.2), read with fetch since the token travels in a header. */
export async function overStream(calls, { since }, { onOpen, onFrames }, signal) {
  const ending = new AbortController();
  const stop = () => ending.abort();
  signal.addEventListener("abort", stop);
  let timer = setTimeout(stop, OPEN_DEADLINE_MS);
  const unbroken = (promise) =>
    promise.catch((cause) => {
      if (signal.aborted) return null;
      throw ending.signal.aborted ? silence() : new Unreachable("the stream broke", { cause });
    });
  try {
    const headers = { Accept: "text/event-stream" };
    if (since) headers["Last-Event-ID"] = since;
    const response = await unbroken(calls.fetch("/v1/events", { headers, signal: ending.signal }));
    if (!response) return;
    if (!response.ok) throw await problemOfReply(response);
    onOpen(null);
    const reader = response.body.getReader();
    const decoder = new TextDecoder();
    let text = "";
    for (;;) {
      const read = await unbroken(reader.read());
      if (!read || read.done) return;
      clearTimeout(timer);
      timer = setTimeout(stop, STREAM_SILENCE_MAX_MS);
      text += decoder.decode(read.value, { stream: true });
      if (text.length > STREAM_CHARACTERS_MAX) throw new Unreachable("an event has no end");
      const events = text.split("\n\n");
      text = events.pop();
      const frames = events.flatMap((event) => {
        const data = event.split("\n").filter((line) => line.startsWith("data:"));
        return data.length ? unpack(data.map((line) => line.slice(5)).join("\n")) : [];
      });
      if (frames.length) onFrames(frames);
    }
  } finally {
    clearTimeout(timer);
    signal.removeEventListener("abort", stop);
    ending.abort();
  }
}

/** Long polls, one after the other; each acknowledges what the last one brought. */
export async function overPolls(calls, { since, have }, { onOpen, onFrames }, signal) {
  const until = performance.now() + POLLING_MAX_MS;
  let isFirst = true;
  while (performance.now() < until && !signal.aborted) {
    const body = { have, limit: POLL_ENTRIES_MAX };
    if (since) body.since = since;
    if (!isFirst) body.wait = POLL_WAIT_S;
    let reply;
    try {
      const deadlineMs = POLL_WAIT_S * 1000 + OPEN_DEADLINE_MS;
      reply = await calls.call("POST", "/v1/sync", { body, signal, deadlineMs });
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Problem && error.code === "conflict") {
        throw new Unreachable("another poll took this queue over");
      }
      throw error;
    }
    if (isFirst) onOpen(null);
    isFirst = false;
    since = reply.cursor;
    have = {};
    onFrames([{ type: "sync", ...reply }]);
  }
}
