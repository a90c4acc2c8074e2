/**
 * Who is using the page: a session, kept in the origin's local storage so that a reload finds it.
 *
 * Script of other origins can't read it, and the pages' content security policy lets no other
 * script in. Where the browser keeps nothing, the session lasts as long as the page.
 */

import { Calls } from "./calls.js";
import { problemOfStatus } from "./problems.js";

const keyOf = (profile, url) => `tidings:${profile}:${url}`;

/** The session kept for the profile, or null. */
export function keptSession(profile, url) {
  try {
    return JSON.parse(localStorage.getItem(keyOf(profile, url)));
  } catch {
    return null;
  }
}

export function forgetSession(profile, url) {
  keep(profile, url, null);
}

function keep(profile, url, session) {
  try {
    if (session) localStorage.setItem(keyOf(profile, url), JSON.stringify(session));
    else localStorage.removeItem(keyOf(profile, url));
  } catch {
    // blocked or full: the page has it
  }
}

/** Whom a JWT names, unchecked: the service checks. */
function subjectOf(jwt) {
  try {
    const [, payload] = jwt.split(".");
    return JSON.parse(atob(payload.replaceAll("-", "+").replaceAll("_", "/"))).sub ?? null;
  } catch {
    return null;
  }
}

/**
 * {token, …} by the first that fits: the `token` given; the kept session if it is of the same
 * publishable key and person; a new one, of the person whom `jwt` names or of somebody anonymous.
 * `jwt` may be a function that fetches one, called only for a new session, with `user_id` saying
 * who it will name. Tabs that sign in at once get the same session.
 */
export async function signIn({ url, profile, token, publishableKey, jwt, user_id, device }) {
  if (token) {
    const kept = keptSession(profile, url);
    if (kept?.token === token) return kept;
    const session = { token };
    keep(profile, url, session);
    return session;
  }
  const subject = user_id ?? (typeof jwt === "string" ? subjectOf(jwt) : null);
  return alone(keyOf(profile, url), async () => {
    const kept = keptSession(profile, url);
    if (!publishableKey) {
      if (kept) return kept;
      throw problemOfStatus(401);
    }
    if (kept?.publishable_key === publishableKey && kept.subject === subject) return kept;
    const body = { publishable_key: publishableKey };
    if (jwt) body.jwt = typeof jwt === "function" ? await jwt() : jwt;
    if (device) body.device = device;
    const made = await new Calls(url).call("POST", "/v1/sessions", { body });
    const session = { token: made.token, publishable_key: publishableKey, subject };
    keep(profile, url, session);
    return session;
  });
}

function alone(name, work) {
  return navigator.locks ? navigator.locks.request(`${name}:sign-in`, work) : work();
}
