/** Elements of the log. Everything that people wrote is put in as text. */

const SVG = "http://www.w3.org/2000/svg";
const ICONS = {
  chat: "M4 5h16v11H10l-4 4v-4H4z",
  close: "M6 6l12 12M18 6L6 18",
  send: "M4 12l16-8-5 16-3-7z",
  clip: "M8 12l5-5a3 3 0 0 1 5 5l-7 7a5 5 0 0 1-7-7l7-7",
};
const LINK = /(https?:\/\/[^\s<>"]+[^\s<>"'.,;:!?)\]])/;
const LINKS_MAX = 50;

/** An element with these properties and children. */
export function el(name, properties, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const path = document.createElementNS(SVG, "path");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

export function drawEntry(entry, { isFirst, isMine, name, quoted }, { say, language, conversation }) {
  const item = el("div", { className: `item${isMine ? " mine" : ""}${isFirst ? " first" : ""}` });
  item.dataset.seq = entry.seq;
  if (isFirst && !isMine) item.append(el("div", { className: "who", textContent: name, dir: "auto" }));
  const bubble = el("div", { className: "bubble", dir: "auto" });
  if (entry.deleted_at) {
    bubble.classList.add("gone");
    bubble.append(say("deleted"));
  } else {
    if (quoted) bubble.append(el("div", { className: "quote", textContent: quoted }));
    bubble.append(...linked(entry.text ?? ""));
    for (const blob of entry.blobs) bubble.append(file(blob, say, conversation));
  }
  const time = new Date(entry.created_at).toLocaleTimeString(language, { timeStyle: "short" });
  const under = entry.edited_at && !entry.deleted_at ? `${time} · ${say("edited")}` : time;
  item.append(bubble, el("div", { className: "under", textContent: under }));
  return item;
}

/** A message on its way, or one that the service refused. */
export function drawOutgoing(message, isFirst, { say, conversation }) {
  const button = (text, onclick) =>
    el("button", { className: "link", type: "button", textContent: text, onclick });
  const under = message.problem
    ? el("div", { className: "under" }, el("span", { className: "bad", textContent: say("failed") }),
        button(say("retry"), () => conversation.retry(message)),
        button(say("discard"), () => conversation.discard(message)))
    : el("div", { className: "under", textContent: say("sending") });
  const text = message.text || "…";
  return el("div", { className: `item mine${isFirst ? " first" : ""}` },
    el("div", { className: "bubble", textContent: text, dir: "auto" }), under);
}

/** Text with its web addresses as links. */
function linked(text) {
  const parts = text.split(LINK, 2 * LINKS_MAX + 1);
  if (parts.join("").length < text.length) return [text];
  return parts.map((part, n) => n % 2
    ? el("a", { href: part, target: "_blank", rel: "noopener noreferrer nofollow", textContent: part })
    : part);
}

/** A button that opens the file; its picture is drawn, since no page's policy has to allow that. */
function file({ blob_id, name, thumbnail_url }, say, conversation) {
  const open = async () => {
    const href = await conversation.link(blob_id).catch(() => null);
    if (href) el("a", { href, target: "_blank", rel: "noopener noreferrer" }).click();
  };
  const button = el("button",
    { className: "file", type: "button", ariaLabel: say("file", name), onclick: open }, name);
  if (thumbnail_url) drawPicture(button, blob_id, conversation).catch(() => {}); // the name stays
  return button;
}

async function drawPicture(button, blob_id, conversation) {
  const reply = await fetch(await conversation.link(blob_id, true), { credentials: "omit" });
  const picture = await createImageBitmap(await reply.blob());
  const canvas = el("canvas", { width: picture.width, height: picture.height, ariaHidden: "true" });
  canvas.getContext("2d").drawImage(picture, 0, 0);
  button.replaceChildren(canvas);
  conversation.changed();
}
