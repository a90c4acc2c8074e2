/** Waiting: exponential with full jitter, and ended early where somebody has a reason to. */

const DOUBLINGS_MAX = 16;

/** Waits for one series of attempts; `reset` it after a success. */
export class Backoff {
  #failures = 0;

  constructor(firstMs, mostMs) {
    this.firstMs = firstMs;
    this.mostMs = mostMs;
  }

  reset() {
    this.#failures = 0;
  }

  /** Milliseconds to wait now; `atLeastMs` is what the service asked for, jitter comes on top. */
  next(atLeastMs = 0) {
    const bound = Math.min(this.mostMs, this.firstMs * 2 ** this.#failures);
    this.#failures = Math.min(this.#failures + 1, DOUBLINGS_MAX);
    return atLeastMs + bound * Math.random();
  }
}

/** Resolves after the time, or at once when the signal is aborted. */
export function sleep(ms, signal) {
  return new Promise((resolve) => {
    if (signal?.aborted) return resolve();
    const timer = setTimeout(done, ms);
    signal?.addEventListener("abort", done);
    function done() {
      clearTimeout(timer);
      signal?.removeEventListener("abort", done);
      resolve();
    }
  });
}

/** What the promise resolves with; rejects past the deadline, and leaves it to go on. */
export function within(deadlineMs, promise) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error("deadline")), deadlineMs);
    promise.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}
