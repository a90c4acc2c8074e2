/** The launcher and its panel, in a shadow root beside the page's body. */

import { Conversation } from "./conversation.js";
import { drawEntry, drawOutgoing, el, icon } from "./drawing.js";
import { STYLES } from "./styles.js";
import { textsFor } from "./texts.js";

const TEXT_CHARACTERS_MAX = 8_000;
const COUNT_SHOWN_MAX = 99;
const MESSAGES = new Set(["text", "campaign", "audio"]);
/** As near to an edge of the log counts as there. */
const EDGE_PX = 40;

/** Put the widget on the page; the function that is returned takes its commands. */
export function start({ url, key, jwt, locale }) {
  const page = [document.documentElement.lang, ...navigator.languages];
  const widget = new Widget(textsFor(locale ? [locale] : page));
  const be = (identity) => widget.show(new Conversation({ url, key, ...identity }, () => widget.draw()));
  be({ jwt });
  return (command, options) => {
    if (command === "identify" && options?.jwt) be({ jwt: options.jwt });
    else if (command === "reset") widget.conversation.signOut().then(() => be({}));
    else if (command === "open" || command === "close") widget.turn(command === "open");
    else console.error(`The chat knows no command ${command}.`);
  };
}

class Widget {
  conversation = null;
  #nodes = new Map();
  #isDrawing = false;
  #isAtEnd = true;
  #notice = "";

  constructor({ language, say }) {
    this.say = say;
    this.language = language;
    const host = document.createElement("tidings-widget");
    const root = host.attachShadow({ mode: "open" });
    const sheet = new CSSStyleSheet();
    sheet.replaceSync(STYLES);
    root.adoptedStyleSheets = [sheet];
    this.root = root;
    this.#build();
    document.documentElement.append(host);
  }

  #build() {
    const { say } = this;
    const button = (className, label, drawing, onclick) =>
      el("button", { className, type: "button", ariaLabel: label, onclick }, icon(drawing));
    this.state = el("div", { className: "state", role: "status" });
    this.log = el("div", { className: "log", role: "log", tabIndex: 0, ariaLabel: say("log"), ariaLive: "polite" });
    this.typing = el("div", { className: "typing", role: "status" });
    this.text = el("textarea", {
      rows: 1, maxLength: TEXT_CHARACTERS_MAX, placeholder: say("placeholder"), ariaLabel: say("label"),
    });
    this.picker = el("input", { type: "file", hidden: true, onchange: () => this.#attach() });
    const attach = button("icon", say("attach"), "clip", () => this.picker.click());
    const send = button("icon send", say("send"), "send");
    send.type = "submit";
    this.form = el("form", { onsubmit: (event) => this.#submit(event) }, attach, this.picker, this.text, send);
    const title = el("h2", { textContent: say("title") });
    const close = button("icon", say("close"), "close", () => this.turn(false));
    this.panel = el("section",
      { className: "panel", role: "dialog", ariaModal: "true", ariaLabel: say("title"), hidden: true },
      el("div", { className: "top" }, el("div", {}, title, this.state), close), this.log, this.typing, this.form);
    this.count = el("span", { className: "count", ariaHidden: "true", hidden: true });
    this.launcher = button("launcher", say("open"), "chat", () => this.turn(this.panel.hidden));
    Object.assign(this.launcher, { ariaHasPopup: "dialog", ariaExpanded: "false" });
    this.launcher.append(this.count);
    this.root.append(el("div", { className: "all", lang: this.language }, this.panel, this.launcher));

    this.text.oninput = () => this.text.value && this.conversation.typing();
    this.text.onkeydown = (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) this.#submit(event);
    };
    this.panel.onkeydown = (event) => this.#steer(event);
    // What is typed here is none of the page's shortcuts.
    for (const type of ["keydown", "keyup", "keypress"]) {
      this.panel.addEventListener(type, (event) => event.stopPropagation());
    }
    this.log.onscroll = () => {
      const { scrollTop, scrollHeight, clientHeight } = this.log;
      this.#isAtEnd = scrollHeight - scrollTop - clientHeight < EDGE_PX;
      if (scrollTop < EDGE_PX && scrollHeight > clientHeight) this.conversation.loadBefore();
      this.#read();
    };
    document.addEventListener("visibilitychange", () => this.#read());
  }

  /** Show another conversation in place of the one before. */
  show(conversation) {
    this.conversation?.stop();
    this.conversation = conversation;
    this.#nodes.clear();
    this.#isAtEnd = true;
    conversation.start();
    this.draw();
  }

  turn(isOpen) {
    if (this.panel.hidden !== isOpen) return;
    this.panel.hidden = !isOpen;
    this.launcher.ariaExpanded = String(isOpen);
    this.launcher.firstChild.replaceWith(icon(isOpen ? "close" : "chat"));
    this.draw();
    if (isOpen) this.text.focus();
    else this.launcher.focus();
  }

  #submit(event) {
    event.preventDefault();
    const text = this.text.value.trim();
    if (!text) return;
    if (!this.conversation.send(text)) return this.#tell(this.say("full"));
    this.text.value = "";
    this.#isAtEnd = true;
    this.#tell("");
  }

  async #attach() {
    const [file] = this.picker.files;
    this.picker.value = "";
    if (!file) return;
    this.#tell(this.say("uploading", file.name));
    try {
      await this.conversation.attach(file);
      this.#tell("");
    } catch ({ status }) {
      this.#tell(this.say(status === 413 || status === 429 ? "tooLarge" : "uploadFailed", file.name));
    }
  }

  #tell(notice) {
    this.#notice = notice;
    this.draw();
  }

  /** Escape closes, and the focus stays inside until then. */
  #steer(event) {
    if (event.key === "Escape" && !event.isComposing) this.turn(false);
    if (event.key !== "Tab") return;
    const all = [...this.panel.querySelectorAll("button, textarea, a, [tabindex]")];
    const edge = event.shiftKey ? all[0] : all.at(-1);
    if (this.root.activeElement !== edge) return;
    event.preventDefault();
    (event.shiftKey ? all.at(-1) : all[0]).focus();
  }

  #read() {
    if (!this.panel.hidden && !document.hidden && this.#isAtEnd) this.conversation.read();
  }

  /** Once per burst; a hidden tab draws too, since its launcher may be looked at beside another. */
  draw() {
    if (this.#isDrawing) return;
    this.#isDrawing = true;
    setTimeout(() => {
      this.#isDrawing = false;
      this.#draw();
    });
  }

  #draw() {
    const { say, conversation } = this;
    const { unread, status, typingId } = conversation;
    this.count.hidden = unread === 0;
    this.count.textContent = unread > COUNT_SHOWN_MAX ? `${COUNT_SHOWN_MAX}+` : unread;
    this.launcher.ariaLabel = unread ? say("openUnread", unread) : say("open");
    if (this.panel.hidden) return;
    const states = { waiting: "offline", connecting: "connecting", refused: "refused", ended: "ended" };
    const state = say(!navigator.onLine && status !== "live" ? "offline" : states[status] ?? "online");
    if (this.state.textContent !== state) this.state.textContent = state;
    this.form.hidden = status === "refused" || status === "ended";
    const typing = typingId && say("typing", conversation.nameOf(typingId) ?? say("team"));
    this.typing.textContent = this.#notice || typing || "";
    this.#drawLog();
    this.#read();
  }

  #drawLog() {
    const { log, conversation, say } = this;
    const { scrollHeight, scrollTop } = log;
    const first = log.querySelector("[data-seq]")?.dataset.seq;
    const wanted = [];
    const put = (key, signature, make) => {
      let known = this.#nodes.get(key);
      if (known?.signature !== signature) known = { signature, node: make() };
      wanted.push([key, known]);
    };
    const note = (key, text) => put(key, text, () => el("div", { className: "day", textContent: text }));
    if (conversation.isLoading || !conversation.hasSettled) note("note", say("loading"));
    else if (conversation.isFailed) note("note", say("notLoaded"));
    else if (conversation.hasBefore) {
      put("note", "more", () => el("button", {
        className: "link", type: "button", textContent: say("earlier"),
        onclick: () => this.conversation.loadBefore(),
      }));
    }
    let day = "";
    let sender = null;
    const begin = (at) => {
      const text = this.#day(at);
      if (text !== day) {
        note(`day ${text}`, text);
        sender = null;
      }
      day = text;
    };
    const messages = [...conversation.entries.values()].filter(({ type }) => MESSAGES.has(type));
    const marked = messages.findLast(({ sender_id }) => sender_id === conversation.userId);
    const waiting = conversation.outbox.all();
    for (const entry of messages) {
      begin(entry.created_at);
      const isFirst = entry.sender_id !== sender;
      sender = entry.sender_id;
      const isMine = entry.sender_id === conversation.userId;
      const name = isMine ? say("you") : conversation.nameOf(entry.sender_id) ?? say("team");
      const quoted = conversation.entries.get(entry.reply_to);
      const parts = { isFirst, isMine, name, quoted: quoted?.deleted_at ? null : quoted?.text };
      const signature = JSON.stringify([parts, entry.text, entry.edited_at, entry.deleted_at, entry.blobs]);
      put(entry.client_id ?? entry.seq, signature, () => drawEntry(entry, parts, this));
      if (entry === marked && !entry.deleted_at && !waiting.length) {
        // A line of its own, so that a screen reader says it alone when it changes.
        const mark = entry.seq <= conversation.seenSeq ? "read" : "sent";
        put("mark", mark, () => el("div", { className: `mine under ${mark}`, textContent: say(mark) }));
      }
    }
    for (const message of waiting) {
      begin(message.at);
      const isFirst = sender !== conversation.userId;
      sender = conversation.userId;
      put(message.client_id, `out ${message.problem}`, () => drawOutgoing(message, isFirst, this));
    }
    if (!wanted.length) {
      put("welcome", "", () => el("div", { className: "welcome" },
        el("b", { textContent: say("welcome") }), say("welcomeMore")));
    }
    this.#nodes = new Map(wanted);
    const nodes = wanted.map(([, { node }]) => node);
    for (const node of [...log.children]) if (!nodes.includes(node)) node.remove();
    nodes.forEach((node, n) => log.children[n] === node || log.insertBefore(node, log.children[n] ?? null));
    const isLonger = first && log.querySelector("[data-seq]")?.dataset.seq < Number(first);
    if (this.#isAtEnd) log.scrollTop = log.scrollHeight;
    else if (isLonger) log.scrollTop = scrollTop + log.scrollHeight - scrollHeight;
  }

  #day(at) {
    const date = new Date(at);
    const ago = Math.round((new Date().setHours(0, 0, 0, 0) - new Date(at).setHours(0, 0, 0, 0)) / 864e5);
    if (ago === 0 || ago === 1) return this.say(ago ? "yesterday" : "today");
    const options = { day: "numeric", month: "long", ...(ago > 300 && { year: "numeric" }) };
    return date.toLocaleDateString(this.language, options);
  }
}
