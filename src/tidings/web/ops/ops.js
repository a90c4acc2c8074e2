/** The operations page: asks `/v1/operations` every two seconds and draws the last ten minutes. */

import { Plot } from "./plot.js";
import { lasted, price, quantile, rates, told } from "./rates.js";

const INTERVAL_MS = 2_000;
const ANSWER_MS_MAX = 5_000;
const SPAN_MS = 10 * 60_000;
const POINTS_MAX = SPAN_MS / INTERVAL_MS + 1;
const KEY = "tidings-operator-key";
const MINUTES_PER_MONTH = 30 * 24 * 60;

const $ = (id) => document.getElementById(id);
const points = [];
let latest = null;
let timer = null;

const plots = [
  new Plot({
    title: "Messages",
    unit: "/s",
    series: [{ name: "Messages/s", value: (point) => point.total.messages }],
  }),
  new Plot({
    title: "Deliveries",
    unit: "/s",
    series: [{ name: "Deliveries/s", value: (point) => point.total.deliveries }],
  }),
  new Plot({
    title: "Connections",
    unit: "open",
    series: [{ name: "Open", value: (point) => point.total.connections }],
  }),
  new Plot({
    title: "Commit latency",
    unit: "ms",
    series: [
      { name: "Median ms", value: (point) => point.median },
      { name: "99th percentile ms", value: (point) => point.slowest },
    ],
  }),
  new Plot({
    title: "Store retries",
    unit: "/s",
    series: [
      { name: "All/s", value: (point) => point.total.retries },
      { name: "Throttled/s", value: (point) => point.total.throttles },
    ],
  }),
  new Plot({
    title: "Units and their price",
    unit: "",
    now: (point) => `${money(point.price)}/min`,
    series: [
      { name: "Write units/min", value: (point) => point.total.write_units * 60 },
      { name: "Read units/min", value: (point) => point.total.read_units * 60 },
    ],
  }),
];

function money(amount) {
  const currency = latest.prices.currency;
  return amount.toLocaleString("en", {
    style: "currency", currency, minimumFractionDigits: 2, maximumFractionDigits: amount < 0.01 ? 6 : 2,
  });
}

/** Ask once; the next time is set whatever the answer is, but for a key that is refused. */
async function ask() {
  clearTimeout(timer);
  const key = sessionStorage.getItem(KEY);
  if (!key) return enter("");
  try {
    const answer = await fetch("/v1/operations", {
      headers: { Authorization: `Bearer ${key}` },
      cache: "no-store",
      signal: AbortSignal.timeout(ANSWER_MS_MAX),
    });
    if (answer.status === 401 || answer.status === 403) {
      sessionStorage.removeItem(KEY);
      return enter("This is not an operator's key. `tidings keys create --operator` makes one.");
    }
    if (!answer.ok) throw new Error(`the service answered ${answer.status}`);
    take(await answer.json());
  } catch (error) {
    tell(`No answer (${error.name === "TimeoutError" ? "too slow" : error.message}); trying again.`, true);
  }
  timer = setTimeout(ask, INTERVAL_MS);
}

/** Draw what came; what is too old to be seen is dropped. */
function take(reply) {
  const passed = latest && rates(latest, reply);
  latest = reply;
  $("entrance").hidden = true;
  $("board").hidden = false;
  $("leave").hidden = false;
  if (passed) {
    passed.median = quantile(passed.total.commits, reply.commit_bounds_ms, 0.5);
    passed.slowest = quantile(passed.total.commits, reply.commit_bounds_ms, 0.99);
    passed.price = price(passed.total.read_units, passed.total.write_units, reply.prices) * 60;
    points.push(passed);
    while (points.length > POINTS_MAX || points[0].at < passed.at - SPAN_MS) points.shift();
    for (const plot of plots) plot.draw(points);
  }
  list(reply, passed);
  const count = reply.nodes.length;
  tell(`${count} ${count === 1 ? "node" : "nodes"}, ${new Date(reply.at).toLocaleTimeString("en-GB")}`, false);
}

function list(reply, passed) {
  const now = Date.parse(reply.at);
  $("nodes").replaceChildren(
    ...reply.nodes.map(({ node, figures }) => {
      const own = passed?.nodes.get(node.id);
      const row = document.createElement("tr");
      row.append(
        cell(node.id, "id"),
        cell(node.address || "–"),
        cell(node.version || "–"),
        cell(lasted(Math.max(0, (now - Date.parse(node.started_at)) / 1000))),
        cell(told(figures?.connections ?? null), "number"),
        cell(told(own?.messages ?? null), "number"),
        cell(told(own?.deliveries ?? null), "number"),
        cell(told(figures?.errors ?? null), figures?.errors ? "number bad" : "number"),
        cell(node.is_draining ? "stopping" : node.silent_s >= 2 ? `silent for ${told(node.silent_s)} s` : "live"),
      );
      return row;
    }),
  );
  const { prices } = reply;
  const source = reply.cost_source === "consumed"
    ? "Units are what the store said that it charged"
    : "Units are what the same work would take on DynamoDB";
  const month = points.length ? ` At this pace, ${money(points.at(-1).price * MINUTES_PER_MONTH)} a month.` : "";
  $("source").textContent =
    `${source}, for calls and commits; priced on demand in ${prices.region}, as of ${prices.as_of}.${month}`;
}

function cell(text, kind = "") {
  const element = document.createElement("td");
  element.className = kind;
  element.textContent = text;
  return element;
}

function tell(text, isBad) {
  $("state").textContent = text;
  $("state").className = isBad ? "bad" : "";
}

function enter(refusal) {
  clearTimeout(timer);
  latest = null;
  points.length = 0;
  $("board").hidden = true;
  $("leave").hidden = true;
  $("entrance").hidden = false;
  $("refusal").textContent = refusal;
  tell("", false);
  $("key").value = "";
  $("key").focus();
}

$("plots").append(...plots.map((plot) => plot.element));
$("entrance").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("key").value.trim());
  ask();
});
$("leave").addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  enter("");
});
ask();
