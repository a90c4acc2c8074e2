/** Files of entries: thumbnails that are asked for when they come into view, all others by name. */

import { el } from "./dom.js";
import { icon } from "./icons.js";
import { sizeText, t } from "./texts.js";

const THUMBNAIL_PX_MAX = 320;
const seen = new IntersectionObserver((sights) => {
  for (const { isIntersecting, target } of sights) {
    if (!isIntersecting) continue;
    seen.unobserve(target);
    target.dispatchEvent(new Event("sight"));
  }
}, { rootMargin: "300px" });

/** A link that works without a credential for a few minutes. */
async function linkTo(shell, path) {
  const [address, query] = path.split("?");
  const { url } = await shell.desk.tidings.call("GET", `${address}/link`, { query: Object.fromEntries(new URLSearchParams(query)) });
  return new URL(url, location.origin).href;
}

async function open(shell, blob) {
  const tab = window.open("", "_blank"); // before waiting, or it is taken for an advertisement
  if (tab) tab.opener = null;
  const link = await shell.attempt(() => linkTo(shell, blob.url));
  if (!link) tab?.close();
  else if (tab) tab.location.replace(link);
  else location.assign(link);
}

/** A button that shows or saves the file. */
export function attachment(shell, blob) {
  const label = t("file.open", { name: blob.name });
  const act = () => open(shell, blob);
  if (!blob.thumbnail_url) {
    return el(
      "button",
      { type: "button", class: "file", "aria-label": label, onclick: act },
      icon("file"), el("span", { class: "name" }, blob.name), el("span", { class: "soft" }, sizeText(blob.size)),
    );
  }
  const picture = el("img", { alt: blob.name, decoding: "async" });
  const scale = Math.min(1, THUMBNAIL_PX_MAX / Math.max(blob.width || 1, blob.height || 1));
  if (blob.width && blob.height) {
    picture.width = Math.max(24, Math.round(blob.width * scale));
    picture.height = Math.max(24, Math.round(blob.height * scale));
  }
  const button = el("button", { type: "button", class: "picture", "aria-label": label, title: blob.name, onclick: act }, picture);
  picture.addEventListener("sight", async () => {
    try {
      picture.src = await linkTo(shell, blob.thumbnail_url);
    } catch (error) {
      if (!error.code && error.name !== "Unreachable") throw error;
      button.classList.add("failed");
    }
  });
  seen.observe(picture);
  return button;
}
