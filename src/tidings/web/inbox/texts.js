/** What the page says, by key and language. A key with `.one` is its singular. */

import { kept, keep } from "./dom.js";
import en from "./texts-en.js";
import ko from "./texts-ko.js";

const CATALOGUES = { en, ko };
const KEY = "tidings:inbox:language";

/** What opens the palette, as its key is called here. */
export const PALETTE_KEY = /Mac|iP(hone|ad)/.test(navigator.platform) ? "⌘K" : "Ctrl K";
export const LANGUAGES = { en: "English", ko: "한국어" };
export const language =
  [kept(KEY), ...(navigator.languages ?? [])]
    .map((each) => each?.slice(0, 2))
    .find((each) => each in CATALOGUES) ?? "en";
const catalogue = CATALOGUES[language];
const plurals = new Intl.PluralRules(language);

/** The text of a key, `{name}` replaced by its value; `count` chooses the form. */
export function t(key, values = {}) {
  const one = values.count !== undefined && plurals.select(values.count) === "one";
  const text = (one && catalogue[`${key}.one`]) || catalogue[key] || en[key] || key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

export function chooseLanguage(name) {
  keep(KEY, name);
  location.reload();
}

/** The variety of the language that the browser prefers: its times of day, its order of dates. */
const locale = navigator.languages?.find((each) => each.startsWith(language)) ?? language;
/** Made when it is first wanted: each takes some milliseconds. */
const format = (options) => {
  let made = null;
  return (at) => (made ??= new Intl.DateTimeFormat(locale, options)).format(new Date(at));
};
const dayText = format({ weekday: "long", day: "numeric", month: "long" });
const shortDay = format({ day: "numeric", month: "short" });
export const clockTime = format({ hour: "2-digit", minute: "2-digit" });
export const dateText = format({ day: "numeric", month: "long", year: "numeric" });
export const wholeTime = format({ dateStyle: "full", timeStyle: "short" });
const DAY_MS = 86_400_000;

const midnight = (date) => new Date(date).setHours(0, 0, 0, 0);
const daysAgo = (date) => Math.round((midnight(Date.now()) - midnight(date)) / DAY_MS);

/** A day as a heading: Today, Yesterday, Monday 3 March, 3 March 2019. */
export function dayName(at) {
  const ago = daysAgo(new Date(at));
  if (ago === 0 || ago === 1) {
    const text = new Intl.RelativeTimeFormat(locale, { numeric: "auto" }).format(-ago, "day");
    return text.charAt(0).toLocaleUpperCase(language) + text.slice(1);
  }
  return Math.abs(ago) < 300 ? dayText(at) : dateText(at);
}

/** A time in a list, as short as can be. */
export function shortTime(at) {
  return daysAgo(new Date(at)) === 0 ? clockTime(at) : shortDay(at);
}

/** A size in bytes, as people say it. */
export function sizeText(bytes) {
  const [value, unit] = bytes < 1e6 ? [Math.max(1, bytes / 1e3), "kilobyte"] : [bytes / 1e6, "megabyte"];
  return value.toLocaleString(locale, {
    style: "unit", unit, unitDisplay: "short", maximumFractionDigits: value < 10 ? 1 : 0,
  });
}
