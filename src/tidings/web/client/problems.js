/** What can go wrong for a client, by the codes of the contract (RFC 9457). */

/** No answer came. Whether the service did what was asked is not known. */
export class Unreachable extends Error {
  name = "Unreachable";
}

/** The service answered with a problem; `code` is the stable name of what happened. */
export class Problem extends Error {
  name = "Problem";

  constructor({ code, status, detail, title, errors }, retryAfterMs = 0) {
    super(detail || title || code);
    this.code = code;
    this.status = status;
    this.errors = errors ?? [];
    /** How long the service wants to be left alone. */
    this.retryAfterMs = retryAfterMs;
  }

  /** Whether the same request may succeed later: nothing was done. */
  get isPassing() {
    return this.code === "rate_limited" || this.code === "unavailable";
  }

  /** Whether coming back is of no use. */
  get isFinal() {
    return !this.isPassing && this.status >= 400 && this.status < 500;
  }
}

const CODES = {
  400: "validation_failed",
  401: "unauthorized",
  403: "forbidden",
  404: "not_found",
  409: "conflict",
  413: "too_large",
  422: "idempotency_mismatch",
  429: "rate_limited",
  502: "unavailable",
  503: "unavailable",
  504: "unavailable",
};

/** The problem for a status alone, whoever on the way answered with it. */
export function problemOfStatus(status, retryAfterMs = 0) {
  return new Problem({ code: CODES[status] ?? "internal", status }, retryAfterMs);
}

/** The problem that a reply tells; whoever on the way wrote it may have had no JSON. */
export async function problemOfReply(response) {
  const seconds = Number(response.headers.get("Retry-After")) || 0;
  let body = null;
  try {
    body = await response.json();
  } catch {
    // the status has to do
  }
  return body?.code
    ? new Problem({ status: response.status, ...body }, seconds * 1000)
    : problemOfStatus(response.status, seconds * 1000);
}
