/**
 * What happened between two replies of `/v1/operations`. Pure: no page, no clock.
 *
 * Counters of a node only grow. A node that started again has a new id, so a node that was not in
 * the earlier reply is left out of the rates until the next one, and none of them is negative.
 */

/** The counters that are drawn as rates per second. */
const COUNTED = ["messages", "deliveries", "retries", "throttles", "errors", "read_units", "write_units"];

/**
 * The rates between two replies, for all nodes together and for each.
 *
 * @param {object} earlier a reply of `/v1/operations`
 * @param {object} later the next one
 * @returns {{at: number, total: object, nodes: Map<string, object>} | null} per second; `at` in
 *   milliseconds; null where no time passed between the two
 */
export function rates(earlier, later) {
  const at = Date.parse(later.at);
  const passed = (at - Date.parse(earlier.at)) / 1000;
  if (!(passed > 0)) return null;
  const before = new Map(earlier.nodes.map(({ node, figures }) => [node.id, figures]));
  const classes = later.commit_bounds_ms.length + 1;
  const total = { connections: 0, commits: new Array(classes).fill(0) };
  for (const name of COUNTED) total[name] = 0;
  const nodes = new Map();
  for (const { node, figures } of later.nodes) {
    if (!figures) continue;
    total.connections += figures.connections;
    const old = before.get(node.id);
    if (!old) continue;
    const own = { connections: figures.connections };
    for (const name of COUNTED) {
      own[name] = Math.max(0, figures[name] - old[name]) / passed;
      total[name] += own[name];
    }
    figures.commits.forEach((count, place) => {
      total.commits[place] += Math.max(0, count - (old.commits[place] ?? 0));
    });
    nodes.set(node.id, own);
  }
  return { at, total, nodes };
}

/**
 * The time within which a share of what was counted in classes was done, in the unit of `bounds`.
 *
 * Within a class it is taken as evenly spread; above the last bound, as the last bound.
 *
 * @param {number[]} counts one for each bound, and one for what was above the last
 * @param {number[]} bounds upper bounds, ascending
 * @param {number} share from 0 to 1
 * @returns {number | null} null where nothing was counted
 */
export function quantile(counts, bounds, share) {
  const all = counts.reduce((sum, count) => sum + count, 0);
  if (all === 0) return null;
  let left = share * all;
  for (let place = 0; place < bounds.length; place += 1) {
    if (left <= counts[place] && counts[place] > 0) {
      const low = place === 0 ? 0 : bounds[place - 1];
      return low + (bounds[place] - low) * (left / counts[place]);
    }
    left -= counts[place];
  }
  return bounds[bounds.length - 1];
}

/**
 * The price of units, in the currency of the prices.
 *
 * @param {number} readUnits
 * @param {number} writeUnits
 * @param {object} prices of a reply of `/v1/operations`
 */
export function price(readUnits, writeUnits, prices) {
  return (
    (readUnits * prices.read_units_per_million + writeUnits * prices.write_units_per_million) / 1e6
  );
}

/** A number as people read it: three digits that matter, and thousands set apart. */
export function told(number) {
  if (number === null || Number.isNaN(number)) return "–";
  const size = Math.abs(number);
  if (size !== 0 && size < 0.001) return number.toPrecision(2);
  const digits = size === 0 || size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3;
  return number.toLocaleString("en", { maximumFractionDigits: digits });
}

/** A duration as people read it, such as `3 d 4 h`. */
export function lasted(seconds) {
  const units = [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]];
  const first = units.findIndex(([, size]) => seconds >= size);
  if (first < 0) return "0 s";
  const parts = [];
  let left = seconds;
  for (const [name, size] of units.slice(first, first + 2)) {
    const count = Math.floor(left / size);
    if (count > 0) parts.push(`${count} ${name}`);
    left -= count * size;
  }
  return parts.join(" ");
}
