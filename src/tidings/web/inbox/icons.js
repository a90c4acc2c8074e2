/** Line drawings of 20 × 20, in the colour of the text beside them. */

const SVG = "http://www.w3.org/2000/svg";
const PATHS = {
  queue: "M3.5 11.5 5.4 4.8h9.2l1.9 6.7v3.7h-13zM3.5 11.5h4l1 1.8h3l1-1.8h4",
  mine: "M10 9.6a3.1 3.1 0 1 0 0-6.2 3.1 3.1 0 0 0 0 6.2ZM3.8 16.6c.6-3.2 3-4.7 6.2-4.7s5.6 1.5 6.2 4.7",
  open: "M3.5 4.5h13v9h-7l-3.4 2.9v-2.9H3.5z",
  snoozed: "M10 16.8a6.8 6.8 0 1 0 0-13.6 6.8 6.8 0 0 0 0 13.6ZM10 6.2V10l2.6 1.9",
  closed: "m4 10.6 3.9 3.9L16 6",
  rooms: "M7.6 3.5 6.2 16.5M13.8 3.5l-1.4 13M4 7.4h12.6M3.4 12.6H16",
  direct: "m3.4 9.4 13.2-6-4.4 13.2-3-5.6zM9.2 11l7.4-7.6",
  search: "M8.8 14.2a5.4 5.4 0 1 0 0-10.8 5.4 5.4 0 0 0 0 10.8ZM12.8 12.8l3.8 3.8",
  back: "M12.5 4 6.5 10l6 6",
  more: "M4.5 10h.01M10 10h.01M15.5 10h.01",
  reply: "M8 5 3.5 9.5 8 14M3.8 9.5h7.4c3 0 5.3 1.8 5.3 5.3",
  smile: "M10 17a7 7 0 1 0 0-14 7 7 0 0 0 0 14ZM7.2 11.6c1.2 2 4.4 2 5.6 0M7.6 8h.01M12.4 8h.01",
  edit: "m4 16 .7-3.4 8.8-8.8 2.7 2.7-8.8 8.8zM11.6 5.7l2.7 2.7",
  bin: "M4.5 6h11M8 6V3.8h4V6M6 6l.7 10.2h6.6L14 6",
  clip: "m15.6 9.6-5.8 5.8a3.5 3.5 0 0 1-5-5l6.3-6.3a2.4 2.4 0 0 1 3.4 3.4l-6.2 6.2a1.2 1.2 0 0 1-1.7-1.7l5.4-5.4",
  send: "M10 16V4.4M5 9.2l5-4.9 5 4.9",
  down: "M10 4v11.6M5 10.8l5 4.9 5-4.9",
  close: "m5 5 10 10M15 5 5 15",
  details: "M3.5 4h13v12h-13zM12 4v12",
  notes: "M4.5 3.5h11v9.2l-3.8 3.8H4.5zM15.3 12.6h-3.6v3.7M7.4 7.2h5.2M7.4 10h3.2",
  file: "M5 3.2h6.4L15 6.8v10H5zM11.2 3.4V7H15",
  clock: "M10 16.8a6.8 6.8 0 1 0 0-13.6 6.8 6.8 0 0 0 0 13.6ZM10 6.2V10l2.6 1.9",
  alert: "M10 3.4 17 16H3zM10 8.2v3.4M10 13.8h.01",
  check: "m4 10.6 3.9 3.9L16 6",
  checks: "m2.4 10.6 3.9 3.9L14.4 6M9.6 13.7l.9.8L18.4 6",
  bell: "M5.4 13.6V9a4.6 4.6 0 0 1 9.2 0v4.6l1.2 1H4.2zM8.6 16.8h2.8",
};

/** The drawing of that name; it says nothing to a screen reader, what it stands in does. */
export function icon(name) {
  const drawing = document.createElementNS(SVG, "svg");
  drawing.setAttribute("viewBox", "0 0 20 20");
  drawing.setAttribute("class", "icon");
  drawing.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  drawing.append(path);
  return drawing;
}
