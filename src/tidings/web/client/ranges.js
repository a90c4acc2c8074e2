/** Ascending numbers as inclusive ranges, as the contract's `have` writes them: `1-97,105`. */

/** The service takes no more. */
export const HAVE_RANGES_MAX = 500;

/** [[low, high], …] of ascending numbers. */
export function rangesOf(numbers) {
  const found = [];
  for (const number of numbers) {
    const last = found.at(-1);
    if (last && number === last[1] + 1) last[1] = number;
    else found.push([number, number]);
  }
  return found;
}

export function haveText(ranges) {
  const shown = ranges.slice(0, HAVE_RANGES_MAX);
  return shown.map(([low, high]) => (low === high ? `${low}` : `${low}-${high}`)).join(",");
}
