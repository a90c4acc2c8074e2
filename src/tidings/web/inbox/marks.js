/** Sent and read: what is known of a message of one's own, in words and as ticks. */

import { el } from "./dom.js";
import { icon } from "./icons.js";
import { t } from "./texts.js";

const NAMES_MAX = 3;

/**
 * {sign, text} for a message of the user's that is durable. With a customer or one colleague it is
 * they who read it; in a room of several it says who.
 */
export function markOf(desk, room, seq) {
  const whose = room.kind === "group" ? null : desk.faceOf(room);
  const readers = desk.tidings
    .readersOf(room.id)
    .filter(({ user_id, read_seq }) => read_seq >= seq && user_id !== desk.me.id)
    .filter(({ user_id }) => whose === null || user_id === whose);
  if (!readers.length) return { sign: "check", text: t("message.sent") };
  if (whose !== null) return { sign: "checks", text: t("message.read") };
  const names = readers.slice(0, NAMES_MAX).map(({ user_id }) => desk.name(user_id)).join(", ");
  const more = readers.length - NAMES_MAX;
  return { sign: "checks", text: more > 0 ? t("message.read.more", { names, more }) : t("message.read.by", { names }) };
}

export const markElement = ({ sign, text }) => el("p", { class: `mark ${sign}` }, icon(sign), el("span", {}, text));
