/** One plot of the last minutes as SVG: at most two series, round axes, a reading under the pointer. */

import { told } from "./rates.js";

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 152;
const LEFT = 44;
const BOTTOM = 18;
const TOP = 6;
const RIGHT = 4;
const LINES = 3;
const MINUTE_MS = 60_000;
const SPAN_MS_MIN = 2 * MINUTE_MS;

/**
 * A plot that is drawn anew with each `draw`.
 *
 * `series` are of the shape `{name, value(point)}`; a value of null leaves a gap. The first
 * series' newest value stands large beside the title, with `unit`. The time that is shown grows with
 * the points.
 */
export class Plot {
  constructor({ title, unit, series, now = null }) {
    this.series = series;
    this.unit = unit;
    this.now = now ?? ((point) => `${told(series[0].value(point))} ${unit}`);
    this.points = [];
    this.pointedAt = null;
    this.element = document.createElement("figure");
    this.element.className = "plot";
    const caption = document.createElement("figcaption");
    const heading = document.createElement("h2");
    heading.textContent = title;
    this.reading = document.createElement("span");
    this.reading.className = "now";
    this.legend = document.createElement("div");
    this.legend.className = "legend";
    caption.append(heading, this.reading, this.legend);
    this.svg = document.createElementNS(SVG, "svg");
    this.svg.setAttribute("role", "img");
    this.svg.setAttribute("aria-label", `${title}, no readings yet`);
    this.title = title;
    this.element.append(caption, this.svg);
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => {
      this.pointedAt = null;
      this.paint();
    });
    new ResizeObserver(() => this.paint()).observe(this.svg);
  }

  /** Show these points, oldest first, each with `at` in milliseconds. */
  draw(points) {
    this.points = points;
    this.paint();
  }

  point(event) {
    const box = this.svg.getBoundingClientRect();
    const share = (event.clientX - box.left - LEFT) / (box.width - LEFT - RIGHT);
    this.pointedAt = this.from + share * this.spanMs;
    this.paint();
  }

  paint() {
    const width = this.svg.clientWidth;
    const last = this.points.at(-1);
    if (!width || !last) return;
    this.spanMs = Math.max(SPAN_MS_MIN, Math.ceil((last.at - this.points[0].at) / MINUTE_MS) * MINUTE_MS);
    this.from = last.at - this.spanMs;
    const across = (at) => LEFT + ((at - this.from) / this.spanMs) * (width - LEFT - RIGHT);
    const values = this.points.flatMap((point) => this.series.map((one) => one.value(point) ?? 0));
    const step = roundStep(Math.max(...values, 0) / LINES);
    const top = step * LINES;
    const up = (value) => HEIGHT - BOTTOM - (value / top) * (HEIGHT - BOTTOM - TOP);
    const shapes = [];
    for (let line = 0; line <= LINES; line += 1) {
      const y = up(line * step);
      shapes.push(shape("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y, y2: y }));
      shapes.push(label(brief(line * step), LEFT - 6, y + 4, "end"));
    }
    for (const [share, anchor] of [[0, "start"], [0.5, "middle"], [1, "end"]]) {
      const ago = told(((1 - share) * this.spanMs) / MINUTE_MS);
      const text = share === 1 ? "now" : `${ago} min ago`;
      shapes.push(label(text, across(this.from + share * this.spanMs), HEIGHT - 2, anchor));
    }
    this.series.forEach((one, place) => {
      const name = `series-${place + 1}`;
      for (const run of runs(this.points, one.value)) {
        const curve = run.map(([at, value]) => `${across(at).toFixed(1)},${up(value).toFixed(1)}`);
        const ends = [across(run[0][0]), across(run.at(-1)[0])].map((x) => `${x.toFixed(1)},${up(0)}`);
        shapes.push(shape("polygon", { class: `area ${name}`, points: [ends[0], ...curve, ends[1]].join(" ") }));
        shapes.push(shape("polyline", { class: `curve ${name}`, points: curve.join(" ") }));
      }
    });
    const shown = this.pointedAt === null ? last : nearest(this.points, this.pointedAt);
    if (this.pointedAt !== null) {
      const x = across(shown.at);
      shapes.push(shape("line", { class: "hair", x1: x, x2: x, y1: TOP, y2: HEIGHT - BOTTOM }));
    }
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.svg.replaceChildren(...shapes);
    this.read(shown, last);
  }

  read(shown, last) {
    this.reading.textContent = this.now(shown);
    const named = this.series.length > 1 ? this.series : [];
    const items = named.map((one, place) => {
      const item = document.createElement("span");
      item.className = `series-${place + 1}`;
      const name = document.createElement("b");
      name.textContent = one.name;
      item.append(name, ` ${told(one.value(shown))}`);
      return item;
    });
    if (shown !== last) {
      const when = document.createElement("span");
      when.textContent = new Date(shown.at).toLocaleTimeString("en-GB");
      items.push(when);
    }
    this.legend.replaceChildren(...items);
    this.svg.setAttribute("aria-label", `${this.title}, now ${this.now(last)}`);
  }
}

/** The smallest of 1, 2 or 5 times a power of ten that is not less; 1 for nothing. */
export function roundStep(size) {
  if (!(size > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(size));
  return [1, 2, 5, 10].map((times) => times * power).find((step) => step >= size * 0.999);
}

/** A number for an axis: 20k for 20,000. */
function brief(number) {
  return number.toLocaleString("en", { notation: "compact", maximumFractionDigits: 2 });
}

/** The parts of a series without gaps, each a list of [at, value]. */
function runs(points, value) {
  const found = [];
  let run = [];
  for (const point of points) {
    const read = value(point);
    if (read === null) {
      if (run.length) found.push(run);
      run = [];
    } else {
      run.push([point.at, read]);
    }
  }
  if (run.length) found.push(run);
  return found;
}

function nearest(points, at) {
  return points.reduce((best, point) =>
    Math.abs(point.at - at) < Math.abs(best.at - at) ? point : best,
  );
}

function shape(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function label(text, x, y, anchor) {
  const element = shape("text", { x, y, "text-anchor": anchor });
  element.textContent = text;
  return element;
}
