/** A person's picture: initials on one of a few quiet colours, the same for them everywhere. */

import { el } from "./dom.js";
import { icon } from "./icons.js";

const COLOURS = 8;
/** No letter that others combine with is among the first two: a segmenter takes 20 ms to be made. */
const PLAIN = /^(?:[ -~가-힣](?:[ -~가-힣]|$)|$)/;
let graphemes = null;

function firstOf(text) {
  if (PLAIN.test(text)) return text.slice(0, 1);
  graphemes ??= new Intl.Segmenter(undefined, { granularity: "grapheme" });
  return [...graphemes.segment(text)][0]?.segment ?? "";
}

function initials(name) {
  const words = name.trim().split(/\s+/).filter((word) => /[\p{L}\p{N}]/u.test(word));
  if (!words.length) return "·";
  const [first, last] = [words[0], words.length > 1 ? words.at(-1) : ""];
  const isIdeographic = /[\p{Script=Hangul}\p{Script=Han}]/u.test(first);
  return (firstOf(first) + (isIdeographic ? "" : firstOf(last))).toLocaleUpperCase();
}

function colourOf(id) {
  let hash = 0;
  for (const character of id) hash = (hash * 31 + character.codePointAt(0)) >>> 0;
  return hash % COLOURS;
}

/** Decoration: the name stands beside it. `sign` is an icon in place of initials. */
export function face(id, name, { isOnline = false, sign = null, size = "" } = {}) {
  const kind = `face ${size} ${sign ? "sign" : `colour-${colourOf(id ?? name)}`}`;
  return el(
    "span",
    { class: kind.trim(), "aria-hidden": "true" },
    sign ? icon(sign) : initials(name),
    isOnline && el("span", { class: "light" }),
  );
}
