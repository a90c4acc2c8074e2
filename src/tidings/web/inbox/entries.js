/** One entry of a log as an element. Texts become text nodes and links: never markup. */

import { attachment } from "./attachments.js";
import { el } from "./dom.js";
import { face } from "./faces.js";
import { icon } from "./icons.js";
import { markElement } from "./marks.js";
import { clockTime, t, wholeTime } from "./texts.js";

/** What is offered at once. */
export const EMOJI = ["👍", "❤️", "😂", "🎉", "🙏", "👀"];
const LINK = /https?:\/\/[^\s<>"']+[^\s<>"'.,;:!?)\]}]/g;
const LARGE_EMOJI = /^(\p{Extended_Pictographic}(\uFE0F|\u200D\p{Extended_Pictographic}|\p{Emoji_Modifier})*\s?){1,3}$/u;

/** A text with its links, and with the names of those it mentions. */
export function textNodes(text, names = []) {
  const known = names.filter(Boolean).map((name) => `@${name}`);
  const marks = [...known, ...known.map((name) => name.split(" ")[0])].sort((one, other) => other.length - one.length);
  const nodes = [];
  let from = 0;
  const parts = [...text.matchAll(LINK)].map((match) => [match.index, match[0]]);
  for (const [at, address] of parts) {
    nodes.push(...mentionNodes(text.slice(from, at), marks));
    nodes.push(el("a", { href: address, target: "_blank", rel: "noopener noreferrer nofollow" }, address));
    from = at + address.length;
  }
  nodes.push(...mentionNodes(text.slice(from), marks));
  return nodes;
}

function mentionNodes(text, marks) {
  const nodes = [];
  let plain = "";
  for (let at = 0; at < text.length; ) {
    const rest = text[at] === "@" ? text.slice(at).toLocaleLowerCase() : "";
    const mark = rest && marks.find((each) => rest.startsWith(each.toLocaleLowerCase()));
    if (mark) {
      if (plain) nodes.push(plain);
      plain = "";
      nodes.push(el("span", { class: "mention" }, text.slice(at, at + mark.length)));
      at += mark.length;
    } else {
      plain += text[at++];
    }
  }
  if (plain) nodes.push(plain);
  return nodes;
}

/** A line about what happened: joined, left, assigned, closed. */
function statusText(desk, entry) {
  const { data = {} } = entry;
  const name = entry.sender_id ? desk.name(entry.sender_id) : null;
  if (entry.type === "joined" || entry.type === "left") {
    const whom = data.user_id ?? data.user_ids?.[0] ?? entry.sender_id;
    return t(`status.${entry.type}`, { name: desk.name(whom) });
  }
  if ("assignee_id" in data && data.assignee_id === null) return t("status.unassigned", { name: name ?? t("someone") });
  if (data.assignee_id) {
    const isSelf = data.assignee_id === entry.sender_id;
    return t(isSelf ? "status.taken" : "status.assigned", { name: name ?? t("someone"), other: desk.name(data.assignee_id) });
  }
  if (data.status === "open") return name ? t("status.opened", { name }) : t("status.reopened");
  if (data.status === "closed") return t("status.closed", { name: name ?? t("someone") });
  if (data.status === "snoozed" || data.snoozed_until) {
    const until = data.snoozed_until;
    return t(until ? "status.snoozed.until" : "status.snoozed", { name: name ?? t("someone"), time: until && wholeTime(until) });
  }
  if (data.title) return t("status.renamed", { name: name ?? t("someone"), title: data.title });
  return t("status.changed", { name: name ?? t("someone") });
}

/** An element for an entry; `isRun` where it goes on under the name before, `original` replied to. */
export function entryElement(conversation, entry, { isRun, original, mark }) {
  const { desk } = conversation;
  const isMessage = entry.type === "text" || entry.type === "audio" || entry.type === "campaign";
  if (!isMessage) {
    return el("li", { class: "event", "data-seq": entry.seq }, el("span", {}, statusText(desk, entry)), " ", time(entry));
  }
  const isOwn = entry.sender_id === desk.me.id;
  const name = isOwn ? desk.me.name : desk.name(entry.sender_id);
  const kind = ["entry", isOwn && "own", isRun && "run", entry.mentions?.includes(desk.me.id) && "to-me"];
  const element = el(
    "li",
    { class: kind.filter(Boolean).join(" "), "data-seq": entry.seq, tabindex: "-1" },
    isRun ? el("span", { class: "gutter", "aria-hidden": "true" }, time(entry)) : face(entry.sender_id, name),
    el(
      "div",
      { class: "body" },
      el(
        "p",
        { class: isRun ? "unseen" : "by" },
        el("span", { class: "name" }, name),
        !isRun && time(entry),
      ),
      original && quote(conversation, original),
      ...content(conversation, entry),
      reactions(conversation, entry),
      mark && markElement(mark),
    ),
  );
  if (!entry.deleted_at && conversation.isOpenToMe) {
    const offer = () => {
      element.removeEventListener("pointerenter", offer);
      element.removeEventListener("focus", offer);
      element.append(tools(conversation, entry, isOwn));
    };
    element.addEventListener("pointerenter", offer);
    element.addEventListener("focus", offer);
  }
  return element;
}

const time = (entry) =>
  el("time", { datetime: entry.created_at, title: wholeTime(entry.created_at) }, clockTime(entry.created_at));

function content(conversation, entry) {
  const { desk } = conversation;
  if (entry.deleted_at) return [el("p", { class: "gone" }, t("message.deleted"))];
  const names = (entry.mentions ?? []).map((id) => desk.name(id));
  const isLarge = entry.text && LARGE_EMOJI.test(entry.text);
  return [
    entry.text &&
      el(
        "p",
        { class: isLarge ? "text large" : "text", dir: "auto" },
        ...textNodes(entry.text, names),
        entry.edited_at && el("span", { class: "edited", title: wholeTime(entry.edited_at) }, ` ${t("message.edited")}`),
      ),
    entry.type === "audio" && !entry.blobs?.length && el("p", { class: "gone" }, t("message.audio")),
    entry.blobs?.length > 0 && el("div", { class: "files" }, entry.blobs.map((blob) => attachment(conversation.shell, blob))),
  ];
}

function quote(conversation, original) {
  const { desk } = conversation;
  const text = original.isGone ? t("message.gone") : original.deleted_at ? t("message.deleted") : (original.text ?? original.blobs?.[0]?.name ?? "");
  return el(
    "button",
    { type: "button", class: "quote", onclick: () => conversation.log.goTo(original.seq) },
    !original.isGone && el("b", {}, desk.name(original.sender_id)),
    el("span", { dir: "auto" }, text),
  );
}

function reactions(conversation, entry) {
  const { desk, roomId, shell } = conversation;
  const given = Object.entries(entry.reactions ?? {}).filter(([, users]) => users.length);
  if (!given.length || entry.deleted_at) return null;
  return el(
    "div",
    { class: "reactions" },
    given.map(([emoji, users]) => {
      const isOwn = users.includes(desk.me.id);
      const names = users.map((id) => desk.name(id)).join(", ");
      const act = () => shell.attempt(() => desk.tidings.react(roomId, entry.seq, emoji, !isOwn));
      return el(
        "button",
        {
          type: "button", class: "reaction", "aria-pressed": String(isOwn), title: names, onclick: act,
          "aria-label": t("reaction.by", { emoji, names, count: users.length }),
        },
        el("span", {}, emoji), " ", el("span", { class: "count" }, String(users.length)),
      );
    }),
  );
}

function tools(conversation, entry, isOwn) {
  const { desk, roomId, shell, composer } = conversation;
  const isAdmin = desk.me.role === "admin";
  const row = el("div", { class: "tools" });
  const tool = (sign, key, act) =>
    el("button", { type: "button", title: t(key), "aria-label": t(key), onclick: act }, icon(sign));
  const react = (emoji) => shell.attempt(() => desk.tidings.react(roomId, entry.seq, emoji));
  const choose = () => {
    row.replaceChildren(
      ...EMOJI.map((emoji) => el("button", { type: "button", "aria-label": emoji, onclick: () => react(emoji).then(rest) }, emoji)),
      tool("close", "cancel", rest),
    );
    row.classList.add("open");
    row.firstChild.focus();
  };
  const sure = () => {
    const act = () => shell.attempt(() => desk.tidings.delete(roomId, entry.seq));
    row.replaceChildren(
      el("span", {}, t("message.delete.sure")),
      el("button", { type: "button", class: "danger", onclick: act }, t("message.delete")),
      el("button", { type: "button", onclick: rest }, t("cancel")),
    );
    row.classList.add("open");
    row.querySelector("button").focus();
  };
  function rest() {
    row.classList.remove("open");
    row.replaceChildren(
      ...[
        tool("smile", "message.react", choose),
        tool("reply", "message.reply", () => composer.reply(entry)),
        isOwn && entry.type === "text" && tool("edit", "message.edit", () => composer.edit(entry)),
        (isOwn || isAdmin) && tool("bin", "message.delete", sure),
      ].filter(Boolean),
    );
  }
  rest();
  return row;
}

/** A message that is on its way, or was refused. */
export function outgoingElement(conversation, record) {
  const { desk, shell } = conversation;
  const { text, blobs } = record.body;
  const { tidings } = desk;
  const state = record.problem
    ? el(
        "p",
        { class: "failed", role: "alert" },
        icon("alert"), el("span", {}, `${t("message.failed")}: ${record.problem.detail ?? record.problem.title ?? record.problem.code}`),
        el("button", { type: "button", onclick: () => tidings.retry(record.key).catch(() => {}) }, t("message.retry")),
        el("button", { type: "button", onclick: () => shell.attempt(() => tidings.discard(record.key)) }, t("message.discard")),
      )
    : el("p", { class: "sending" }, icon(record.entry ? "check" : "clock"), t(record.entry ? "message.sent" : "message.sending"));
  return el(
    "li",
    { class: record.problem ? "entry own refused" : "entry own waiting", tabindex: "-1" },
    face(desk.me.id, desk.me.name),
    el(
      "div",
      { class: "body" },
      el("p", { class: "by" }, el("span", { class: "name" }, desk.me.name)),
      text && el("p", { class: "text", dir: "auto" }, ...textNodes(text)),
      blobs?.length > 0 && el("p", { class: "gone" }, icon("clip"), String(blobs.length)),
      state,
    ),
  );
}
