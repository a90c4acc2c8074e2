/**
 * Tidings in the browser: connect, show, send; nothing lost, nothing twice, also offline.
 *
 *     const tidings = await connect({url: "https://chat.example.com", token});
 *     tidings.on("badge", () => show(tidings.badge));
 *     const view = tidings.view(roomId);
 *     view.subscribe(() => draw(view.entries));
 *     await tidings.send(roomId, "Hello");
 */

import { keptSession, signIn } from "./signin.js";
import { Tidings } from "./tidings.js";

export { at } from "./calls.js";
export { Problem, Unreachable } from "./problems.js";
export { isMark } from "./view.js";

/** The service that this module came from. */
export const HOME = new URL("../../../", import.meta.url).href.replace(/\/$/, "");

/** Whether a reload would find a session without credentials. */
export const isSignedIn = ({ url = HOME, profile = "default" } = {}) =>
  keptSession(profile, url) !== null;

/**
 * Connect, and resolve as soon as what the browser kept is shown.
 *
 * Who it is: `token` of a session; or `publishableKey`, alone for somebody anonymous or with a
 * `jwt` (or a function that fetches one, and the `user_id` it names); or nothing, to go on as who
 * signed in before. `profile` keeps apart what has to do with different people on one origin, such
 * as a team's inbox and a customer's widget. `storage: "memory"` keeps nothing. `onSignedOut` is
 * told the problem when the session ends. Rejects with `Problem` (unauthorized) or `Unreachable`.
 */
export async function connect(options = {}) {
  const whole = { profile: "default", ...options };
  whole.url = (options.url ?? HOME).replace(/\/+$/, "");
  const session = await signIn(whole);
  return new Tidings(session, whole).open();
}
